"""Does a small encoder-decoder read what it translates, and can one see where it looks?

Vaswani et al. 2017, arXiv:1706.03762, section 3: each block of the decoder attends over the whole source. The texts are verses in the English of
the 1390s and in that of 2000. The model was trained once (minitransformers/reporting/translators.py) and is asked about chapters that it has not
seen: with the right source, with that of another verse, and with none. What it writes is held against the source as it stands, against a
dictionary that was counted, and against what it writes for another verse. Three seeds choose the verses.
"""

# %%
from collections import Counter
from functools import cache, partial

import numpy as np

from minitransformers import trees
from minitransformers.attention.heads import split_heads
from minitransformers.attention.multi_head_attention import multi_head_attention
from minitransformers.attention.scaled_dot_product_attention import attention_weights
from minitransformers.basics.embedding import embedding
from minitransformers.basics.linear import linear
from minitransformers.efficient.kv_cache import decode
from minitransformers.models.beam_search import beam_search
from minitransformers.models.decoding import without_cache
from minitransformers.models.transformer import (
    init_transformer,
    sub_layer,
    transformer,
    transformer_decoder_block,
    transformer_encoder,
    transformer_step,
)
from minitransformers.positional.sinusoidal import sinusoidal
from minitransformers.reporting import Section, bits, mean_and_spread, shortest_times
from minitransformers.reporting.translators import SETTINGS, SIZES, load_translator, nats
from minitransformers.reporting.verses import END, START, chrf, decoded, encoded, load_verses, pairs
from minitransformers.training.threads import hold_blas
from minitransformers.training.yardsticks import counted

section = Section(__file__, __doc__, kind="trained")
VERSES, LONGEST, SHOWN, WRITTEN = 150, 48, 40005008, (40005008, 41005001, 42015011, 43015009, 46015056, 49005022, 52005021)
RIGHT, OTHER, NONE = "its own source", "the source of another verse", "no source"
GREEDY, BEAMS, BLIND, COPY, WORDS, COMMON = "greedy", "four beams", "greedy, another verse's source", "the source as it is", "word by word", "the commonest verse"
known, unknown = load_verses()
params = load_translator()


# %% What there is without a network
@cache
def dictionary():
    """For each old word the new one that it shares most verses with, for its frequency and for that of the other (Dice)."""
    both, then, now = Counter(), Counter(), Counter()
    for verse in known[:: 8 if section.quick else 1]:
        old, new = set(verse.then.split()), set(verse.now.split())
        then.update(old)
        now.update(new)
        both.update((a, b) for a in old for b in new)
    best = {}
    for (a, b), count in both.items():
        best[a] = max(best.get(a, (0, a)), (count / (then[a] + now[b]), b))
    return {a: b for a, (_, b) in best.items()}


def commonest():
    """What most verses of today say word for word."""
    return Counter(verse.now for verse in known).most_common(1)[0][0]


# %% Writing
def greedy(sources):
    """The most likely token each time, 50 texts at once."""
    texts = []
    for start in range(0, len(sources), 50):
        some = pairs(sources[start : start + 50], [[END]] * len(sources[start : start + 50]))
        step = partial(transformer_step, params, source=some.source, mask=some.mask, **SETTINGS)
        texts += decode(step, some.target, num_tokens=LONGEST)[0].tolist()
    return [decoded(ids) for ids in texts]


def with_beams(sources):
    """The best of four beams, with the paper's length penalty."""
    steps = (partial(transformer_step, params, source=np.array([ids]), **SETTINGS) for ids in sources)
    return [decoded(beam_search(step, np.array([START]), num_tokens=LONGEST, num_beams=4, end=END)[0].ids) for step in steps]


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
    sources, targets, truth = [encoded(v.then) for v in chosen], [encoded(v.now) for v in chosen], [v.now for v in chosen]
    others = sources[1:] + sources[:1]
    for name, given in {RIGHT: sources, OTHER: others, NONE: [[END]] * len(chosen)}.items():
        yield name, "all", {"bits": bits(nats(transformer, params, given, targets)) / sum(len(text) + 1 for text in truth)}
    written = {
        GREEDY: greedy(sources), BLIND: greedy(others), COPY: [v.then for v in chosen], COMMON: [commonest()] * len(chosen),
        WORDS: [" ".join(dictionary().get(word, word) for word in v.then.split()) for v in chosen],
    }  # fmt: skip
    for name, texts in {**written, BEAMS: with_beams(sources)}.items():
        yield name, "all", {"like": chrf(texts, truth)}
    untrained = init_transformer(rng, **SIZES)
    for name, model in {"trained": params, "untrained": untrained}.items():
        yield name, "all", aligned(model, pairs(sources, targets))
    one = pairs(sources[:1], [[END]])
    steps = {
        "cached": partial(transformer_step, params, source=one.source, **SETTINGS),
        "from the start": without_cache(lambda ids: transformer(params, source=one.source, target=ids, **SETTINGS)),
    }
    calls = {name: partial(decode, step, one.target, num_tokens=24) for name, step in steps.items()}
    for name, seconds in shortest_times(calls, rounds=2 if section.quick else 7).items():
        yield name, "all", {"milliseconds": 1000 * seconds / 24}


# %%
def of(found, measure, name):
    return found[measure][name]["all"]


def told(found, measure, *names, digits=".1f"):
    return "; ".join(f"{name} {mean_and_spread(of(found, measure, name), digits)}" for name in names)


@section.claim(
    "A small encoder-decoder reads its source",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3: every position of the decoder attends over all positions of the input",
    measured=lambda found: f"bits a character of verses it has not seen: {told(found, 'bits', RIGHT, OTHER, NONE, digits='.2f')}",
)
def reads(found):
    """Given its own source a verse costs at least 0.3 bits a character less than given another's, and than given none."""
    return of(found, "bits", RIGHT) <= min(of(found, "bits", OTHER), of(found, "bits", NONE)) - 0.3


@section.claim(
    "Is what it writes closer to today's verse than what needs no network?",
    paper="no paper: the trivial baselines",
    measured=lambda found: f"chrF: {told(found, 'like', GREEDY, WORDS, COPY, COMMON, BLIND)}",
)
def closer(found):
    """By chrF at least 2 points above the source as it is, its words from a counted dictionary, the commonest verse, and its own text for another verse."""
    return of(found, "like", GREEDY) >= max(of(found, "like", name) for name in (WORDS, COPY, COMMON, BLIND)) + 2


@section.claim(
    "Are four beams better than the most likely token each time?",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 6.1: four beams, chosen after experimentation",
    measured=lambda found: f"chrF: {told(found, 'like', GREEDY, BEAMS)}",
)
def beams(found):
    """By chrF at least half a point."""
    return of(found, "like", BEAMS) >= of(found, "like", GREEDY) + 0.5


@section.claim(
    "Where it looks goes along with where it writes",
    paper="Bahdanau et al. 2014, arXiv:1409.0473, section 5.2.1 and figure 3: maps align words, mostly along the diagonal",
    measured=lambda found: f"correlation of the places: {told(found, 'along', 'trained', 'untrained', digits='.2f')}",
)
def goes_along(found):
    """The correlation of the place read, on average, with the place written is at least 0.5, and 0.3 more than untrained."""
    return of(found, "along", "trained") >= max(0.5, of(found, "along", "untrained") + 0.3)


@section.claim(
    "Does it look most at the token that it is about to write?",
    paper="Bahdanau et al. 2014, arXiv:1409.0473, section 5.2.1: the maps agree with intuition",
    measured=lambda found: f"share: {told(found, 'found', 'trained', 'untrained', digits='.2f')}; any place {np.mean(of(found, 'chance', 'trained')):.2f}",
)
def finds(found):
    """Where that token stands in the source, once: in at least a third of the cases, and three times as often as untrained."""
    return of(found, "found", "trained") >= max(1 / 3, 3 * of(found, "found", "untrained"))


@section.claim(
    "Keys of the source that are made once save most of the time",
    paper="Vaswani et al. 2017 say nothing of it; Shazeer 2019, arXiv:1911.02150, section 2.4: decoding step by step",
    measured=lambda found: f"milliseconds a token: {told(found, 'milliseconds', 'cached', 'from the start', digits='.2f')}",
    kind="timed",
)
def cached(found):
    """A token takes at most half of the time that reading everything again takes."""
    return of(found, "milliseconds", "cached") <= of(found, "milliseconds", "from the start") / 2


# %%
@section.report
def report(found):
    losses = [[f"the Transformer, given {name}", mean_and_spread(of(found, "bits", name)), None] for name in (RIGHT, OTHER, NONE)]
    pair = counted("\n".join(v.now for v in known), "\n".join(v.now for v in unknown))["bigram"]
    likes = [[name, None, mean_and_spread(of(found, "like", name), ".1f")] for name in (GREEDY, BEAMS, BLIND, WORDS, COPY, COMMON)]
    section.table("translation", ["what", "bits a character", "chrF"], [*losses, ["counted pairs of characters", f"{pair:.2f}", None], *likes])
    rows = [[name, *(mean_and_spread(of(found, measure, name)) for measure in ("found", "along"))] for name in ("trained", "untrained")]
    section.table("translation_alignment", ["attention", "finds the token, share", "correlation of places"], [*rows, ["any place", mean_and_spread(of(found, "chance", "trained")), "0"]])
    picked = [verse for verse in unknown if verse.number in WRITTEN]
    texts = greedy([encoded(verse.then) for verse in picked])
    section.table("translated", ["then", "now", "written"], [[v.then, v.now, text] for v, text in zip(picked, texts, strict=True)])
    section.values("translation.bits", {key: np.mean(of(found, "bits", name)) for key, name in {"right": RIGHT, "other": OTHER, "none": NONE}.items()})
    names = {"greedy": GREEDY, "beams": BEAMS, "blind": BLIND, "copy": COPY, "words": WORDS, "common": COMMON}
    section.values("translation.chrf", {key: np.mean(of(found, "like", name)) for key, name in names.items()})
    section.values("translation.milliseconds", {key: np.mean(of(found, "milliseconds", name)) for key, name in {"cached": "cached", "whole": "from the start"}.items()})
    for key, measure in {"found": "found", "along": "along"}.items():
        section.values(f"translation.{key}", {name: np.mean(of(found, measure, name)) for name in ("trained", "untrained")})
    section.values("translation", {"verses": len(known), "tests": len(unknown), "asked": VERSES, "parameters": trees.count_parameters(params), "cases": np.mean(of(found, "cases", "trained"))})


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
