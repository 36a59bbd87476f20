"""How much of dense attention's weight do patterns keep that look at places alone?

Zaheer et al. 2020, arXiv:2007.14062, section 2: words take their meaning from their neighbours, and random keys shorten the paths.
Beltagy et al. 2020, arXiv:2004.05150, and Child et al. 2019, arXiv:1904.10509: windows, a few global tokens, strides. A small language model
learns real text with dense attention. Then each pattern is laid on its weights, beside as many keys for every query that are drawn at random,
that are the nearest, and that are the best there are; and the model predicts from what the pattern lets through.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.reporting import Section, counted_pairs, mean_and_spread, tried
from minitransformers.reporting.sparse_attention import dense_weights
from minitransformers.reporting.sparse_attention.dense_weights import (
    HEADS,
    LAYERS,
    LENGTH,
    bits_of,
    corpus,
    laid_on,
    more,
    told,
    unread,
)
from minitransformers.reporting.sparse_attention.patterns import read_through
from minitransformers.sparse_attention.block_table import block_mask, causal_block_table
from minitransformers.sparse_attention.longformer import pattern
from minitransformers.sparse_attention.strided import fixed_pattern, strided_pattern
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
DELETED = "attention deleted"
WINDOW, DILATED, LONGFORMER, BIG_BIRD = "window", "dilated window", "window and a global column", "BigBird"
STRIDED, FIXED = "strided", "fixed"
KEYS, STRIDE, BLOCK = 8, 10, 8                               # KEYS besides its own, of a window


# %% The model learns with dense attention
def trained(rng, *, rate):
    return dense_weights.trained(rng, rate=rate, steps=5 if section.quick else dense_weights.STEPS)


@section.tuning
def tuning(rng):
    yield from tried(lambda _, rng, *, rate: bits_of(trained(rng, rate=rate), unread(64)), ["dense"], (5e-3, 1e-2, 2e-2), rng, alike=False)


# %% Who sees whom
def patterns(rng):
    near = partial(pattern, LENGTH, LENGTH, causal=True)
    table = causal_block_table(LENGTH // BLOCK, heads=HEADS, num_random=1, seed=int(rng.integers(2**32)))
    masks = {
        WINDOW: near(window=KEYS, global_positions=(), dilation=1),
        DILATED: near(window=KEYS, global_positions=(), dilation=2),
        LONGFORMER: near(window=KEYS, global_positions=(0,), dilation=1),
        BIG_BIRD: block_mask(table, block=BLOCK, queries=LENGTH, keys=LENGTH),
        STRIDED: strided_pattern(LENGTH, LENGTH, stride=STRIDE, local=True),
        FIXED: fixed_pattern(LENGTH, LENGTH, stride=STRIDE, summary=2, local=True),
    }
    return {name: lambda query, key, mask=mask: mask for name, mask in masks.items()}


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    params, seers = trained(rng, rate=section.rates["dense"]), patterns(rng)
    yield "dense", "both", {"bits": bits_of(params, unread())}
    itself = read_through(lambda query, key: np.eye(LENGTH, dtype=bool))
    yield DELETED, "both", {"bits": bits_of(params, unread(), cores=[itself] * len(LAYERS))}
    yield from laid_on(params, [seers] * len(LAYERS), rng)


# %%
@section.claim(
    "Where heads read what is near, does a short window keep nearly all?",
    paper="Zaheer et al. 2020, arXiv:2007.14062, section 2: a great deal of information about a token is in its neighbours",
    measured=lambda found: f"{WINDOW} {' and '.join(mean_and_spread(of) for of in found['kept'][WINDOW].values())}",
)
def near_is_enough(found):
    """In the second layer a window of nine keys keeps at least 0.8 of the weight."""
    return found["kept"][WINDOW][LAYERS[1]] >= 0.8


@section.claim(
    "Random and global blocks keep no more than a wider window",
    paper="Zaheer et al. 2020, arXiv:2007.14062, section 2: random keys are there for short paths, which a share of the weight does not show",
    measured=lambda found: told(found, "nearest", BIG_BIRD),
)
def blocks(found):
    """BigBird keeps no more of the weight than as many nearest keys, in each layer."""
    return max(more(found, BIG_BIRD, "nearest")) <= 0


@section.report
def report(found):
    pairs, bits = counted_pairs(corpus()), {name: of["both"] for name, of in found["bits"].items()}
    section.table("kept", dense_weights.COLUMNS, dense_weights.rows(found))
    rows = [*([name, mean_and_spread(of)] for name, of in bits.items()), ["counted pairs of characters", f"{pairs:.2f}"]]
    section.table("kept_bits", ["read through", "bits a character"], rows)
    for key, name in zip(("window", "dilated", "longformer", "big_bird", "strided", "fixed"), found["kept"], strict=True):
        section.values(f"kept.{key}", dense_weights.means(found, name))
    section.values("kept.bits", {"dense": bits["dense"].mean(), "deleted": bits[DELETED].mean(), "pairs": pairs})
    section.values("kept", {"length": LENGTH, "steps": dense_weights.STEPS, "texts": dense_weights.TEXTS, "first": dense_weights.FIRST})


@section.figure("kept", size=(7.2, 2.4), ncols=2, sharey=True)
def picture(axes, found):
    dense_weights.draw(axes, found)


if __name__ == "__main__":
    section.main()
