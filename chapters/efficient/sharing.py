"""What do shared keys and windows make of a token's time?

Shazeer 2019, arXiv:1911.02150, section 3.1: decoding takes the time of reading keys and values, so heads that share them make it
cheaper. Jiang et al. 2023, arXiv:2310.06825, section 2: with a window the cache has a fixed size. One layer of 8 query heads of 64
features writes the next token of longer and longer texts.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import (
    grouped_query_attention_step,
    init_grouped_query_attention,
    key_value_cache,
    sliding_window_attention_step,
    softmax_attention,
)
from minitransformers.reporting import Section, lines, shortest_times, ticks_at

section = Section(__file__, __doc__, kind="timed")
HEADS, WIDTH, LENGTHS, WINDOW = 8, 64, (2048, 4096, 8192, 16384), 1024
KEY_HEADS = {8: "8 key heads", 4: "4 key heads", 2: "2 key heads", 1: "1 key head"}
APART, NEAR = "2 key heads, each query head by itself", f"8 key heads, a window of {WINDOW:,}"


# %%
def together(params, query, key, value, bias=None, *, mask=None):
    """A core for one query: the heads that share a key are rows of one product, which reads the key once."""
    out, _ = softmax_attention(params, query.swapaxes(-2, -3), key, value)
    return out.swapaxes(-2, -3), None


@section.experiment
def experiment(rng):
    steps = {}
    for curve, kv_heads in [*((curve, n) for n, curve in KEY_HEADS.items()), (APART, 2), (NEAR, HEADS)]:
        params = init_grouped_query_attention(rng, HEADS * WIDTH, num_heads=HEADS, num_kv_heads=kv_heads)
        step = partial(grouped_query_attention_step, params, num_heads=HEADS, num_kv_heads=kv_heads)
        steps[curve] = kv_heads, step if curve == APART else partial(step, core=together)
    steps[NEAR] = HEADS, partial(sliding_window_attention_step, params, num_heads=HEADS, window=WINDOW)
    states = {}
    for n in LENGTHS[:2] if section.quick else LENGTHS:
        for curve, (kv_heads, _) in steps.items():
            kept = rng.standard_normal((2, 1, kv_heads, 1, n, WIDTH), np.float32)
            states[curve, n] = key_value_cache(None, *kept, window=WINDOW if curve == NEAR else None)
    token = rng.standard_normal((1, 1, HEADS * WIDTH), np.float32)

    def next_token(curve, n):
        _, states[curve, n] = steps[curve][1](token, states[curve, n])

    calls = {place: partial(next_token, *place) for place in states}
    for (curve, n), seconds in shortest_times(calls, rounds=3 if section.quick else 40).items():
        yield curve, n, {"seconds": seconds}


# %%
def slope(found, curve):
    """Nanoseconds that one more position costs, between the shortest text and the longest."""
    first, *_, last = found["seconds"][curve]
    return 1e9 * float(np.ravel(found["seconds"][curve][last] - found["seconds"][curve][first])[0]) / (last - first)


def growth(found, curve):
    """By how much the time of a token grows from the shortest text to the longest."""
    first, *_, last = found["seconds"][curve].values()
    return float(np.ravel(last / first)[0])


@section.claim(
    "Heads that share keys make a position cheaper, by less than as many as share",
    paper="Shazeer 2019, arXiv:1911.02150, section 3.1: the time of decoding is that of reading keys and values, which shared heads divide",
    measured=lambda found: ", ".join(f"{slope(found, curve):.0f} ns with {curve}" for curve in found["seconds"] if curve != NEAR) + ", for a position",
)
def sharing(found):
    """With 2 heads of keys for 8 of queries a further position costs between 1/4 and 4/5 of what it costs with 8."""
    return 0.25 < slope(found, KEY_HEADS[2]) / slope(found, KEY_HEADS[8]) < 0.8


@section.claim(
    "With a window a token costs the same after any number",
    paper="Jiang et al. 2023, arXiv:2310.06825, section 2: the cache has a fixed size",
    measured=lambda found: f"{growth(found, NEAR):.2f} times the time after {LENGTHS[-1]:,} as after {LENGTHS[0]:,}; without a window "
    f"{growth(found, KEY_HEADS[8]):.1f} times",
)
def window(found):
    """From the shortest text to the longest less than 1.3 times."""
    return growth(found, NEAR) < 1.3


@section.report
def report(found):
    times = {curve: {n: 1e3 * float(np.ravel(t)[0]) for n, t in of.items()} for curve, of in found["seconds"].items()}
    rows = [[curve, *(float(f"{t:.3g}") for t in of.values()), float(f"{slope(found, curve):.2g}")] for curve, of in times.items()]
    section.table("sharing", ["ms for a token after", *(f"{n:,}" for n in times[NEAR]), "ns a further position"], rows)
    cheaper = {f"heads{n}": slope(found, KEY_HEADS[8]) / slope(found, curve) for n, curve in KEY_HEADS.items()}
    section.values("sharing", {**cheaper, "apart": slope(found, KEY_HEADS[8]) / slope(found, APART), "window": growth(found, NEAR), "all": growth(found, KEY_HEADS[8])})


@section.figure("sharing")
def picture(ax, found):
    curves = {curve: {n: 1e3 * t for n, t in of.items()} for curve, of in found["seconds"].items() if curve != APART}
    lines(ax, curves, xlabel="tokens before", ylabel="ms for the next token", xscale="log", yscale="log")
    ticks_at(ax, list(curves[NEAR]))
    ax.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
