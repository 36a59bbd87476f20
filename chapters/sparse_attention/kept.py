"""How much of dense attention's weight do patterns keep that look at places alone?

Zaheer et al. 2020, arXiv:2007.14062, section 2: words take their meaning from their neighbours, and random keys shorten the paths.
Beltagy et al. 2020, arXiv:2004.05150, and Child et al. 2019, arXiv:1904.10509: windows, a few global tokens, strides. A small language model
learns real text with dense attention. Then each pattern is laid on its weights, beside as many keys for every query that are drawn at random,
that are the nearest, and that are the best there are; and the model predicts from what the pattern lets through.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.reporting import Section, bits, counted_pairs, mean_and_spread, nats
from minitransformers.reporting.patterns import dense, init_dense, kept_weight, met, read_through
from minitransformers.sparse_attention.block_table import block_mask, causal_block_table
from minitransformers.sparse_attention.longformer import pattern
from minitransformers.sparse_attention.strided import fixed_pattern, strided_pattern
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Labelled
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LENGTH, WIDTH, HEADS, STEPS = 96, 48, 4, 300
TEXTS, FIRST = 16, 32                                        # that are measured, and their first query: earlier ones have few keys to choose from
LAYERS, DELETED = ("first layer", "second layer"), "attention deleted"
WINDOW, DILATED, LONGFORMER, BIG_BIRD = "window", "dilated window", "window and a global column", "BigBird"
STRIDED, FIXED = "strided", "fixed"
KEYS, STRIDE, BLOCK = 8, 10, 8                               # KEYS besides its own, of a window
model, corpus = partial(dense, num_heads=HEADS), Corpus.load(context=LENGTH)


# %% The model learns with dense attention
def trained(rng, *, rate):
    params = init_dense(rng, corpus.vocabulary.size, WIDTH, num_layers=len(LAYERS), num_heads=HEADS, std=0.1)
    task = Labelled(model, partial(corpus.batch, batch_size=8, context=LENGTH))
    return fit(params, task, steps=5 if section.quick else STEPS, peak=rate, rng=rng, warmup=0.1, floor=0.05)


def bits_of(params, texts, **settings):
    """Bits a character, from query FIRST on."""
    ids, targets = texts
    return bits(nats(model(params, ids, **settings)[0], np.where(np.arange(LENGTH) < FIRST, IGNORED, targets)))


@section.tuning
def tuning(rng):
    hold_blas()
    texts = next(corpus.evaluation_batches(batch_size=64, context=LENGTH, limit=64))
    for rate in (5e-3, 1e-2, 2e-2):
        yield "dense", rate, {"loss": bits_of(trained(np.random.default_rng(rng.integers(2**32)), rate=rate), texts)}


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
    texts = next(corpus.evaluation_batches(batch_size=TEXTS, context=LENGTH, limit=TEXTS))
    yield "dense", "both", {"bits": bits_of(params, texts)}
    for name, seen in {DELETED: lambda query, key: np.eye(LENGTH, dtype=bool), **seers}.items():
        yield name, "both", {"bits": bits_of(params, texts, cores=[read_through(seen)] * len(LAYERS))}
    for layer, both in zip(LAYERS, met(params, texts[0], num_heads=HEADS), strict=True):
        for name, shares in kept_weight(rng, *both, seers, first=FIRST).items():
            yield name, layer, shares


# %%
def told(found, other, *names):
    """What they keep in each layer, and then as many keys that are chosen otherwise."""

    def each(measure):
        return ", ".join(f"{name} {' and '.join(mean_and_spread(of) for of in found[measure][name].values())}" for name in names)

    return "; ".join(f"{measure}: {each(measure)}" for measure in ("kept", other))


def more(found, name, other):
    """How much more a pattern keeps than as many keys that are chosen otherwise, in each layer."""
    return [found["kept"][name][layer] - found[other][name][layer] for layer in LAYERS]


@section.claim(
    "Where heads read what is near, a short window keeps nearly all",
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
    measures, bits = ("pairs", "kept", "random", "nearest", "best"), {name: of["both"] for name, of in found["bits"].items()}
    rows = [[name, layer, *(mean_and_spread(found[measure][name][layer]) for measure in measures)] for layer in LAYERS for name in found["kept"]]
    section.table("kept", ["pattern", "in the", "pairs seen", "weight kept", "as many at random", "as many nearest", "as many best"], rows)
    rows = [*([name, mean_and_spread(of)] for name, of in bits.items()), ["counted pairs of characters", f"{counted_pairs(corpus):.2f}"]]
    section.table("kept_bits", ["read through", "bits a character"], rows)
    for key, name in zip(("window", "dilated", "longformer", "big_bird", "strided", "fixed"), found["kept"], strict=True):
        for layer, number in zip(LAYERS, ("first", "second"), strict=True):
            section.values(f"kept.{key}.{number}", {measure: found[measure][name][layer].mean() for measure in measures})
        section.value(f"kept.{key}.bits", bits[name].mean())
    section.values("kept.bits", {"dense": bits["dense"].mean(), "deleted": bits[DELETED].mean(), "pairs": counted_pairs(corpus)})
    section.values("kept", {"length": LENGTH, "steps": STEPS, "texts": TEXTS, "first": FIRST})


@section.figure("kept", size=(7.2, 2.4), ncols=2, sharey=True)
def picture(axes, found):
    for ax, layer in zip(axes, LAYERS, strict=True):
        for place, name in enumerate(found["kept"]):
            at = {measure: np.mean(found[measure][name][layer]) for measure in ("kept", "random", "nearest", "best")}
            ax.plot([at["random"], at["best"]], [place, place], color="#808080", linewidth=3, alpha=0.5, solid_capstyle="butt")
            ax.plot(at["nearest"], place, "|", color="#d0691f", markersize=11, markeredgewidth=2)
            ax.plot(at["kept"], place, "o", color="#2f7ebf")
        ax.set(title=layer, xlabel="share of the weight", xlim=(0, 1.02))
    axes[0].set_yticks(range(len(found["kept"])), list(found["kept"]))
    axes[0].invert_yaxis()


if __name__ == "__main__":
    section.main()
