"""What does a cache hold, and what does it save?

Shazeer 2019, arXiv:1911.02150, section 2.4: decoding step by step computes what the whole computes, from the keys and values that are kept.
Ainslie et al. 2023, arXiv:2305.13245, section 2: shared heads shrink what is kept. Jiang et al. 2023, arXiv:2310.06825, section 2: a window
needs its last W entries alone. One layer of attention reads a text in pieces.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.attention.banded_attention_blocks import banded_attention_blocks
from minitransformers.attention.grouped_query_attention import (
    grouped_query_attention,
    grouped_query_attention_step,
    init_grouped_query_attention,
)
from minitransformers.attention.masks import sliding_window_mask
from minitransformers.attention.sliding_window_attention import init_sliding_window_attention, sliding_window_attention_step
from minitransformers.reporting import Section, lines, shortest_times
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
WIDTH, HEADS, TEXT, WINDOW, TOKENS = 64, 4, 40, 8, 256
PIECES = {"single steps": [1] * TEXT, "a prompt, then steps": [25] + [1] * 15, "pieces": [7, 13, 1, 19]}
CACHED, AGAIN = "with a cache", "the whole text again"
attend = partial(grouped_query_attention, num_heads=HEADS, num_kv_heads=2)
step = partial(grouped_query_attention_step, num_heads=HEADS, num_kv_heads=2)


# %%
def differences(rng):
    """Between a text read at once and in pieces, with all of it in sight and with a window."""
    params = init_grouped_query_attention(rng, WIDTH, num_heads=HEADS, num_kv_heads=2, dtype=np.float64)
    x = rng.normal(size=(2, TEXT, WIDTH))
    window = {"core": partial(banded_attention_blocks, window=WINDOW), "window": WINDOW}
    for mask, near in ((None, {}), (sliding_window_mask(TEXT, window=WINDOW), window)):
        whole, _ = attend(params, x, mask=mask)
        for name, pieces in PIECES.items():
            outs, state = [], None
            for piece in np.split(x, np.cumsum(pieces)[:-1], axis=1):
                out, state = step(params, piece, state, **near)
                outs.append(out)
            yield name if mask is None else f"{name}, window", np.abs(np.concatenate(outs, axis=1) - whole).max()


def sizes(rng):
    """Bytes of the cache after each position: of 4, 2 and 1 heads of keys, and of a window."""
    x = rng.standard_normal((1, TEXT, WIDTH), np.float32)
    for kv_heads in (4, 2, 1):
        params, state = init_grouped_query_attention(rng, WIDTH, num_heads=HEADS, num_kv_heads=kv_heads), None
        for t in range(TEXT):
            _, state = grouped_query_attention_step(params, x[:, t : t + 1], state, num_heads=HEADS, num_kv_heads=kv_heads)
            yield str(kv_heads), t + 1, state.bytes
    params, state = init_sliding_window_attention(rng, WIDTH, num_heads=HEADS, num_kv_heads=2), None
    for t in range(TEXT):
        _, state = sliding_window_attention_step(params, x[:, t : t + 1], state, num_heads=HEADS, window=WINDOW)
        yield "window", t + 1, state.bytes


@section.experiment
def experiment(rng):
    hold_blas()
    for name, difference in differences(rng):
        yield name, TEXT, {"difference": difference}
    for name, tokens, size in sizes(rng):
        yield name, tokens, {"bytes": size}

    params, text = init_grouped_query_attention(rng, WIDTH, num_heads=HEADS, num_kv_heads=2), rng.standard_normal((1, TOKENS, WIDTH), np.float32)
    states, state = {}, None
    for n in range(16, (64 if section.quick else TOKENS) + 1, 16):
        _, state = step(params, text[:, n - 16 : n], state)
        states[n] = state

    def next_token(n):
        _, states[n] = step(params, text[:, :1], states[n])

    calls = {(CACHED, n): partial(next_token, n) for n in states} | {(AGAIN, n): partial(attend, params, text[:, :n]) for n in states}
    for (name, n), spent in shortest_times(calls, rounds=5).items():
        yield name, n, {"seconds": spent}


# %%
@section.claim(
    "A text read in pieces equals the text read at once",
    paper="Shazeer 2019, arXiv:1911.02150, section 2.4: decoding step by step computes what the whole computes",
    kind="exact",
    measured=lambda found: f"largest difference {worst(found):.0e}",
)
def same(found):
    """Equal to 1e-12 for single steps, a prompt and pieces, with all of the text in sight and with a window."""
    return worst(found) < 1e-12


@section.claim(
    "Sharing key heads shrinks the cache by the number that share, and a window stops its growth",
    paper="Shazeer 2019 and Ainslie et al. 2023, section 2: the cache shrinks by the group's size; Jiang et al. 2023: a rolling buffer of W entries",
    kind="exact",
    measured=lambda found: f"{kept(found, '4', TEXT)}, {kept(found, '2', TEXT)} and {kept(found, '1', TEXT)} bytes after {TEXT} positions; "
    f"with a window of {WINDOW} {kept(found, 'window', WINDOW)} at position {WINDOW} and {kept(found, 'window', TEXT)} at {TEXT}",
)
def smaller(found):
    """At every position bytes are in the ratio 4 : 2 : 1 for 4, 2 and 1 key heads; with a window they are the same from position W on."""
    four, two, one, window = (found["bytes"][name] for name in ("4", "2", "1", "window"))
    return all(four[n] == 2 * two[n] == 4 * one[n] for n in four) and len({window[n] for n in window if n >= WINDOW}) == 1


@section.claim(
    "A cache makes decoding faster",
    paper="Shazeer 2019, arXiv:1911.02150, section 2.4: the time of a step grows with what is kept, and not with its square",
    measured=lambda found: f"a token among the first {max(found['seconds'][CACHED])}: {faster(found):.1f} times as fast on average",
)
def quicker(found):
    """Over the whole text at least twice as fast as reading everything again for each token."""
    return faster(found) >= 2


def worst(found):
    return float(max(np.max(of[TEXT]) for of in found["difference"].values()))


def kept(found, name, position):
    return int(np.max(found["bytes"][name][position]))


def faster(found):
    cached, again = (float(np.sum(list(found["seconds"][name].values()))) for name in (CACHED, AGAIN))
    return again / cached


@section.report
def report(found):
    section.values("decoding", {"difference": worst(found), "tokens": max(found["seconds"][CACHED]), "times_faster": faster(found)})
    section.values("cache.bytes", {heads: kept(found, heads, TEXT) for heads in ("4", "2", "1")})
    section.values("cache", {"rolling": kept(found, "window", TEXT), "positions": TEXT, "window": WINDOW})


@section.figure("decoding", size=(4.6, 2.8))
def picture(ax, found):
    one = np.median(list(found["seconds"][CACHED].values()))
    curves = {name: {n: t / one for n, t in found["seconds"][name].items()} for name in (AGAIN, CACHED)}
    lines(ax, curves, xlabel="tokens so far", ylabel="time of the next token\n(with a cache = 1)", yscale="log")
    ax.legend()


if __name__ == "__main__":
    section.main()
