"""Can one see where a small encoder-decoder looks while it translates?

Bahdanau, Cho and Bengio 2014, arXiv:1409.0473, section 5.2.1 and figure 3: maps of attention from the target to the source align their words. The
model is the Transformer of the section on translation, which has learned from verses in two Englishes. It reads and writes verses of chapters that
it has not seen; three seeds choose them. Beside it stands the same network before it has learned anything.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.attention.heads import split_heads
from minitransformers.attention.multi_head_attention import multi_head_attention
from minitransformers.attention.scaled_dot_product_attention import attention_weights
from minitransformers.basics.embedding import embedding
from minitransformers.basics.linear import linear
from minitransformers.models.transformer import init_transformer, sub_layer, transformer_decoder_block, transformer_encoder
from minitransformers.positional.sinusoidal import sinusoidal
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.reporting.models.translators import SETTINGS, SIZES, load_translator
from minitransformers.reporting.models.verses import END, decoded, encoded, load_verses, pairs
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
VERSES, SHOWN = 150, 40005008
_, unknown = load_verses()
params = load_translator()


# %% Where it looks
def attention_maps(model, batch):
    """Whom each place of the target looks at in the source, a mean over the heads: (layers, texts, targets, sources)."""
    memory, _ = transformer_encoder(model, batch.source, mask=batch.mask, **SETTINGS)
    y, _ = sinusoidal(SIZES["d_model"] ** 0.5 * embedding(model.embedding, ids=batch.target)[0])
    maps = []
    for block in model.decoder:
        written, _ = sub_layer(block[:2], y, part=partial(multi_head_attention, **SETTINGS))
        cross = block.cross_attention
        query, key = (split_heads(linear(*part)[0], SETTINGS["num_heads"]) for part in ((cross.query, written), (cross.key, memory)))
        maps.append(attention_weights(query, key, mask=batch.mask).mean(axis=1))
        y, _ = transformer_decoder_block(block, y, memory, mask=batch.mask, **SETTINGS)
    return np.array(maps)


def aligned(model, batch):
    """Two numbers of a layer that looks at the source, each the better of the layers'.

    Of the tokens about to be written that stand in the source as well, once: how often the place is looked at most. And how the place that
    is looked at, on average, goes along with the place that is written, both as parts of their texts (correlation). And, for the first, chance.
    """
    maps = attention_maps(model, batch)
    best, lengths = maps.argmax(-1), batch.mask.sum(-1)[:, 0, 0]
    texts, places = np.nonzero(batch.labels > END)
    centres = maps @ np.arange(maps.shape[-1])
    written = places / (batch.labels > END).sum(-1)[texts]
    along = [np.corrcoef(layer[texts, places] / lengths[texts], written)[0, 1] for layer in centres]
    matches = batch.source[texts] == batch.labels[texts, places][:, None]
    once = (matches & batch.mask[texts, 0, 0]).sum(-1) == 1
    found = best[:, texts[once], places[once]] == matches[once].argmax(-1)
    return {"found": found.mean(-1).max(), "along": max(along), "chance": (1 / lengths[texts[once]]).mean(), "cases": once.sum()}


# %%
@section.experiment
def experiment(rng):
    hold_blas()
    chosen = [unknown[i] for i in rng.permutation(len(unknown))[: 6 if section.quick else VERSES]]
    batch = pairs([encoded(verse.then) for verse in chosen], [encoded(verse.now) for verse in chosen])
    for name, model in {"trained": params, "untrained": init_transformer(rng, **SIZES)}.items():
        yield name, "all", aligned(model, batch)


# %%
def of(found, measure, name):
    return found[measure][name]["all"]


def told(found, measure):
    return "; ".join(f"{name} {mean_and_spread(of(found, measure, name))}" for name in ("trained", "untrained"))


@section.claim(
    "Where it looks goes along with where it writes",
    paper="Bahdanau et al. 2014, arXiv:1409.0473, section 5.2.1 and figure 3: maps align words, mostly along the diagonal",
    measured=lambda found: f"correlation of the places: {told(found, 'along')}",
)
def goes_along(found):
    """The correlation of the place read, on average, with the place written is at least 0.5, and 0.3 more than untrained."""
    return of(found, "along", "trained") >= max(0.5, of(found, "along", "untrained") + 0.3)


@section.claim(
    "Does it look most at the token that it is about to write?",
    paper="Bahdanau et al. 2014, arXiv:1409.0473, section 5.2.1: the maps agree with intuition",
    measured=lambda found: f"share: {told(found, 'found')}; any place {np.mean(of(found, 'chance', 'trained')):.2f}",
)
def finds(found):
    """Where that token stands in the source, once: in at least a third of the cases, and three times as often as untrained."""
    return of(found, "found", "trained") >= max(1 / 3, 3 * of(found, "found", "untrained"))


@section.report
def report(found):
    chance = mean_and_spread(of(found, "chance", "trained"))
    rows = [[name, *(mean_and_spread(of(found, measure, name)) for measure in ("found", "along"))] for name in ("trained", "untrained")]
    section.table("translation_alignment", ["attention", "finds the token, share", "correlation of places"], [*rows, ["any place", chance, "0"]])
    for measure in ("found", "along"):
        section.values(f"translation.{measure}", {name: np.mean(of(found, measure, name)) for name in ("trained", "untrained")})
    section.value("translation.cases", np.mean(of(found, "cases", "trained")))


@section.figure("attention_map", size=(7.2, 3.6), ncols=2, sharey=True)
def picture(axes, found):
    verse = next(verse for verse in unknown if verse.number == SHOWN)
    batch = pairs([encoded(verse.then)], [encoded(verse.now)])
    for layer, (ax, weights) in enumerate(zip(axes, attention_maps(params, batch)[:, 0], strict=True), 1):
        ax.imshow(np.ones_like(weights), cmap="Blues", vmin=0, vmax=1.4, alpha=weights / weights.max(), aspect="auto", interpolation="nearest")
        for axis, ids in ((ax.xaxis, batch.source[0]), (ax.yaxis, batch.labels[0])):
            axis.set_ticks(range(len(ids)), ["end" if i == END else decoded([i]).replace(" ", "") for i in ids], fontsize=7)
        ax.tick_params(axis="x", rotation=90)
        ax.set(title=f"block {layer}", xlabel="read")
        ax.grid(False)
    axes[0].set(ylabel="about to be written")


if __name__ == "__main__":
    section.main()
