"""What does the next token cost, in memory and in time?

Dao and Gu 2024, arXiv:2405.21060, section 1: a recurrence writes from a state of constant size, in constant time a token; what attention
keeps grows with every token. One layer of Mamba-2 and one of multi-head attention, at equal width, after longer and longer texts.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import init_mamba2, init_multi_head_attention, trees
from minitransformers.attention.multi_head_attention import multi_head_attention_step
from minitransformers.reporting import Section, lines, shortest_times, ticks_at
from minitransformers.state_space.mamba2 import mamba2_step
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
WIDTH, AFTER, STATE, CACHE = 128, (64, 128, 256, 512, 1024, 2048, 4096, 8192), "Mamba-2", "attention"
D_STATE = 64                                                 # Mamba-2's default


# %%
def bytes_of(state):
    return state.bytes if hasattr(state, "bytes") else sum(leaf.nbytes for _, leaf in trees.leaves(state))


def formula(name, n):
    """What must be kept in float32: three inputs of the convolution and a state; or keys and values."""
    return 4 * (3 * (2 * WIDTH + 2 * D_STATE) + 2 * WIDTH * D_STATE) if name == STATE else 4 * 2 * n * WIDTH


@section.experiment
def experiment(rng):
    hold_blas()
    layers = {
        STATE: partial(mamba2_step, init_mamba2(rng, WIDTH)),
        CACHE: partial(multi_head_attention_step, init_multi_head_attention(rng, WIDTH, num_heads=4), num_heads=4),
    }
    after, x = AFTER[:3] if section.quick else AFTER, rng.standard_normal((1, 1, WIDTH), np.float32)
    for name, step in layers.items():
        state, seen, tokens = None, 0, {}
        for n in after:
            while seen < n:                                  # a text in pieces
                piece = min(256, n - seen)
                _, state = step(rng.standard_normal((1, piece, WIDTH), np.float32), state)
                seen += piece
            yield name, n, {"bytes": bytes_of(state), "formula": formula(name, n)}
            tokens[n] = partial(step, x, state)
        for n, seconds in shortest_times(tokens, rounds=5 if section.quick else 60).items():  # all in turn: the machine's pace drifts
            yield name, n, {"ms": 1e3 * seconds}


# %%
def lone(found, measure, name, n):
    return float(np.ravel(found[measure][name][n])[0])


def growth(found, name):
    """By how much the time of a token grows from the shortest text to the longest."""
    n = list(found["ms"][name])
    return lone(found, "ms", name, n[-1]) / lone(found, "ms", name, n[0])


def kib(found, name):
    n = list(found["bytes"][name])
    return f"{name} {lone(found, 'bytes', name, n[0]) / 1024:,.1f} KiB after {n[0]} and {lone(found, 'bytes', name, n[-1]) / 1024:,.1f} after {n[-1]:,}"


EQUAL = next(n for n in range(1, AFTER[-1]) if formula(CACHE, n) >= formula(STATE, n))


@section.claim(
    "What Mamba-2 keeps of the past does not grow",
    paper="Dao and Gu 2024, arXiv:2405.21060, section 1: a constant state; attention's cache is linear in the length",
    kind="exact",
    measured=lambda found: f"{kib(found, STATE)}; {kib(found, CACHE)}; equally large after {EQUAL}",
)
def constant(found):
    """The state has as many bytes after every text, and states and caches as they are have those of the formula."""
    return len(set(found["bytes"][STATE].values())) == 1 and found["bytes"] == found["formula"]


@section.claim(
    "Nor does the time of a token",
    paper="Dao and Gu 2024, arXiv:2405.21060, section 1: constant time a token",
    measured=lambda found: f"{growth(found, STATE):.2f} times and {growth(found, CACHE):.2f} times (the longest over the shortest)",
)
def token(found):
    """After 8,192 positions a token takes at most 1.2 times what it takes after 64, and with a cache more than 1.5 times."""
    return growth(found, STATE) <= 1.2 and growth(found, CACHE) > 1.5


@section.report
def report(found):
    rows = [[n, *(lone(found, "bytes", name, n) / 1024 for name in (STATE, CACHE)), *(lone(found, "ms", name, n) for name in (STATE, CACHE))]
            for n in found["ms"][STATE]]  # fmt: skip
    section.table("decoding", ["after", "Mamba-2, KiB", "attention, KiB", "Mamba-2, ms", "attention, ms"], rows)
    section.values("decoding.sizes", {"width": WIDTH, "equal": EQUAL, "first": AFTER[0], "last": AFTER[-1]})
    section.values("decoding.sizes.growth", {"mamba2": growth(found, STATE), "attention": growth(found, CACHE)})


@section.figure("decoding", size=(7.6, 2.9), ncols=2)
def picture(axes, found):
    kept = {name: {n: of / 1024 for n, of in found["bytes"][name].items()} for name in (STATE, CACHE)}
    lines(axes[0], kept, title="what is kept of the past: KiB", xlabel="position", xscale="log", yscale="log")
    lines(axes[1], found["ms"], title="ms for the next token", xlabel="position", xscale="log", ylim=(0, None))
    for ax in axes:
        ticks_at(ax, list(found["ms"][STATE])[::2])
    axes[0].legend()


if __name__ == "__main__":
    section.main()
