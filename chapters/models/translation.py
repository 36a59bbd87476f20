"""Does a small encoder-decoder learn to read what it translates?

Vaswani et al. 2017, arXiv:1706.03762, section 3: the decoder looks at the source in each of its blocks. The texts are short verses in the
English of 1382 and in today's. One Transformer learns from pairs; another, as large, has its sources withheld: it knows how verses sound, and
not which one is meant. Where a token of the translation stands in the source as well, once (names, mostly), one can ask whether the decoder
looks there when it is about to write it.
"""

# %%
from collections import Counter
from functools import partial

import numpy as np

from minitransformers import trees
from minitransformers.attention.heads import split_heads
from minitransformers.attention.multi_head_attention import multi_head_attention
from minitransformers.basics.embedding import embedding
from minitransformers.basics.linear import linear
from minitransformers.basics.softmax import softmax
from minitransformers.efficient.kv_cache import decode
from minitransformers.models.tokenizers.byte_pair_encoding import byte_pair_decode
from minitransformers.models.transformer import (
    init_transformer,
    sub_layer,
    transformer,
    transformer_decoder_block,
    transformer_encoder,
    transformer_step,
)
from minitransformers.positional.sinusoidal import sinusoidal
from minitransformers.reporting import Section, bits, mean_and_spread, processor_seconds
from minitransformers.reporting.verses import END, START, labels, load_verses, padded, verse_vocabulary
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Labelled, labelled_loss
from minitransformers.training.threads import hold_blas
from minitransformers.training.yardsticks import counted

section = Section(__file__, __doc__, kind="trained")
WIDTH, LAYERS, HEADS, STEPS, BATCH = 64, 2, 4, 800, 16
READS, WITHHELD = "reads its source", "its source withheld"
known, unknown = load_verses()
vocabulary = verse_vocabulary(known)
first, last = (vocabulary.added.ids[token] for token in (START, END))
characters = sum(len(verse.now) + 1 for verse in unknown)    # and the end
PAIRS = counted("\n".join(verse.now for verse in known), "\n".join(verse.now for verse in unknown))["bigram"]
LEARNED, TESTED = ((padded([v.then for v in verses], vocabulary=vocabulary), padded([v.now for v in verses], vocabulary=vocabulary, start=True))
                   for verses in (known, unknown))  # fmt: skip


# %%
def seen_by(name, source):
    """The ids that the encoder reads, and which of them attention may see: without its source, the first place alone, always the same token."""
    if name == WITHHELD:
        return np.full_like(source.ids[:, :1], first), None
    return source.ids, source.real[:, None, None, :]


def cut(pair, rows):
    """Some of the pairs, as long as the longest of them."""
    chosen = [type(side)(side.ids[rows], side.real[rows]) for side in pair]
    return [type(side)(*(array[:, : side.real.sum(-1).max()] for array in side)) for side in chosen]


def model(params, inputs, *, name):
    source, ids = inputs
    read, mask = seen_by(name, source)
    return transformer(params, source=read, target=ids, num_heads=HEADS, mask=mask)


def trained(name, rng, *, rate, pairs=LEARNED):
    def draw(rng):
        source, target = cut(pairs, rng.integers(len(pairs[0].ids), size=BATCH))
        ids, targets = labels(target)
        return (source, ids), targets

    params = init_transformer(rng, vocabulary=640, d_model=WIDTH, num_layers=LAYERS, num_heads=HEADS, d_hidden=2 * WIDTH)
    return fit(params, Labelled(partial(model, name=name), draw), steps=3 if section.quick else STEPS, peak=rate, rng=rng, warmup=0.2, floor=0.02)


def nats_of(params, name, pairs):
    """Of all tokens of the translations, the end among them."""
    total = 0.0
    for start in range(0, len(pairs[0].ids), 48):
        source, target = cut(pairs, slice(start, start + 48))
        ids, targets = labels(target)
        total += float(labelled_loss(*model(params, (source, ids), name=name), targets)[0][0])
    return total


def written(params, name, pairs):
    """What the model writes, the most likely token each time."""
    read, mask = seen_by(name, pairs[0])
    step = partial(transformer_step, params, num_heads=HEADS, source=read, mask=mask)
    ids, _ = decode(step, np.full((len(read), 1), first), num_tokens=8 if section.quick else 44)
    rows = [row[: np.argmax(row == last)] if last in row else row for row in ids]
    return [byte_pair_decode(row.tolist(), vocabulary=vocabulary) for row in rows]


def likeness(texts, others):
    """The F-measure of three characters, over all texts together, in per cent."""
    counts = [[Counter(text[i : i + 3] for i in range(len(text) - 2)) for text in side] for side in (texts, others)]
    common = sum((a & b).total() for a, b in zip(*counts, strict=True))
    return 100 * 2 * common / max(1, sum(count.total() for side in counts for count in side))


def attention_maps(params, source, ids):
    """Whom each place of the target looks at in the source, a mean over the heads: (layers, texts, targets, sources)."""
    mask, maps = source.real[:, None, None, :], []
    memory, _ = transformer_encoder(params, source.ids, num_heads=HEADS, mask=mask)
    y, _ = sinusoidal(WIDTH**0.5 * embedding(params.embedding, ids=ids)[0])
    for block in params.decoder:
        x, _ = sub_layer(block[:2], y, part=partial(multi_head_attention, num_heads=HEADS))
        query, key = (split_heads(linear(part, read)[0], HEADS) for part, read in ((block.cross_attention.query, x), (block.cross_attention.key, memory)))
        scores = query @ key.swapaxes(-1, -2) / query.shape[-1] ** 0.5
        maps.append(softmax(np.where(mask, scores, -np.inf))[0].mean(axis=1))
        y, _ = transformer_decoder_block(block, y, memory, num_heads=HEADS, mask=mask)
    return np.array(maps)


def found_again(params, pairs):
    """Of the tokens that stand in the source too, once: how often either layer looks at them most, and how often any place would be right."""
    source, target = pairs
    ids, targets = labels(target)
    best = attention_maps(params, source, ids).argmax(-1)    # (layers, texts, targets)
    right, chance = [], []
    for text, at in zip(*np.nonzero((targets != IGNORED) & (targets != last)), strict=True):
        there = np.flatnonzero(source.ids[text] == targets[text, at])
        if len(there) == 1:
            right.append(best[:, text, at] == there[0])
            chance.append(1 / source.real[text].sum())
    return np.mean(right, axis=0).max(), np.mean(chance)


@section.tuning
def tuning(rng):
    hold_blas()
    order = rng.permutation(len(LEARNED[0].ids))
    own, held = (cut(LEARNED, rows) for rows in (order[200:], order[:200]))
    for name in (READS, WITHHELD):
        for rate in (5e-3,) if section.quick else (1.25e-3, 2.5e-3, 5e-3, 1e-2):
            params = trained(name, np.random.default_rng(rng.integers(2**32)), rate=rate, pairs=own)
            yield name, rate, {"loss": nats_of(params, name, held) / held[1].real[:, 1:].sum()}


@section.experiment
def experiment(rng):
    hold_blas()
    for name in (READS, WITHHELD):
        with processor_seconds() as spent:
            params = trained(name, rng, rate=section.rates[name])
        measured = {"bits": bits(nats_of(params, name, TESTED) / characters), "likeness": likeness(written(params, name, TESTED), [v.now for v in unknown])}
        yield name, "all", {**measured, "seconds": spent(), "parameters": trees.count_parameters(params)}
        if name == READS:
            right, chance = found_again(params, TESTED)
            yield name, "all", {"looked": right, "chance": chance}
            source, target = cut(TESTED, np.array([SHOWN]))
            for layer, shown in enumerate(attention_maps(params, source, labels(target)[0])):
                for (row, column), weight in np.ndenumerate(shown[0]):
                    yield "map", (layer, row, column), {"weight": weight}
            for number, text in enumerate(written(params, name, cut(TESTED, np.arange(5)))):
                for place, byte in enumerate(text.encode()):
                    yield "written", (number, place), {"byte": byte}


SHOWN = int(np.argmin([abs(len(verse.then) - 44) + 9 * (sum(word in verse.then for word in verse.now.split() if word[0].isupper()) < 2) for verse in unknown]))


# %%
def of(found, name, measure="bits"):
    return found[measure][name]["all"]


@section.claim(
    "A small encoder-decoder learns to read its source",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3: every position of the decoder attends over all positions of the input",
    measured=lambda found: f"bits a character of unseen verses: {'; '.join(f'{name} {mean_and_spread(of(found, name))}' for name in (READS, WITHHELD))}",
)
def reads(found):
    """At least 0.2 bits a character fewer than the same model whose source is withheld."""
    return of(found, READS) <= of(found, WITHHELD) - 0.2


@section.claim(
    "Is what it writes closer to today's English than the source is?",
    paper="no paper: the trivial baseline",
    measured=lambda found: f"{mean_and_spread(of(found, READS, 'likeness'), '.1f')} per cent, the source itself {COPIED:.1f}",
)
def closer(found):
    """By the F-measure of three characters at least 2 per cent points more than the source taken as it is."""
    return of(found, READS, "likeness") >= COPIED + 2


@section.claim(
    "Does its attention find a token of the translation in the source?",
    paper="Vaswani et al. 2017, arXiv:1706.03762, appendix, shows such maps; Bahdanau et al. 2014, arXiv:1409.0473, figure 3",
    measured=lambda found: f"in {mean_and_spread(of(found, READS, 'looked'))} of the cases, any place {mean_and_spread(of(found, READS, 'chance'))}",
)
def finds(found):
    """In at least a third of the cases one of the layers looks most at the very token that is about to be written."""
    return of(found, READS, "looked") >= 1 / 3


COPIED = likeness([verse.then for verse in unknown], [verse.now for verse in unknown])


# %%
def texts_of(found):
    """What the first seed wrote."""
    parts = {}
    for (number, _), byte in found["byte"]["written"].items():
        parts.setdefault(number, []).append(int(np.atleast_1d(byte)[0]))
    return [bytes(part).decode(errors="replace") for part in parts.values()]


@section.report
def report(found):
    rows = []
    for name in (READS, WITHHELD):
        size, seconds = (np.mean(of(found, name, measure)) for measure in ("parameters", "seconds"))
        rows.append([name, f"{section.rates[name]:g}", int(size), float(f"{seconds:.1f}"), mean_and_spread(of(found, name)), mean_and_spread(of(found, name, "likeness"), ".1f")])
    rows.append(["the source, as it is", "", None, None, "–", f"{COPIED:.1f}"])
    rows.append(["counted pairs of characters", "", None, None, f"{PAIRS:.2f}", "–"])
    section.table("translation", ["model", "rate", "parameters", "processor seconds", "bits a character", "like the translation, %"], rows)
    section.table("translated", ["then", "now", "what is written"], [[v.then, v.now, text] for v, text in zip(unknown, texts_of(found), strict=False)])
    section.values("translation", {"bits": np.mean(of(found, READS)), "withheld": np.mean(of(found, WITHHELD)), "like": np.mean(of(found, READS, "likeness")),
                                   "copied": COPIED, "looked": 100 * np.mean(of(found, READS, "looked")), "chance": 100 * np.mean(of(found, READS, "chance")),
                                   "verses": len(known), "tests": len(unknown), "steps": STEPS})  # fmt: skip


@section.figure("attention_map", size=(6.4, 5))
def picture(ax, found):
    source, target = cut(TESTED, np.array([SHOWN]))
    weights = {place: np.atleast_1d(weight)[0] for place, weight in found["weight"]["map"].items() if place[0] == LAYERS - 1}
    shown = np.zeros((1 + max(row for _, row, _ in weights), 1 + max(column for *_, column in weights)))
    for (_, row, column), weight in weights.items():
        shown[row, column] = weight
    ax.imshow(shown, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    for axis, ids in ((ax.xaxis, source.ids[0]), (ax.yaxis, target.ids[0, 1:])):
        axis.set_ticks(range(len(ids)), [byte_pair_decode([int(i)], vocabulary=vocabulary) for i in ids])
    ax.tick_params(axis="x", rotation=90)
    ax.set(xlabel="read", ylabel="about to be written")
    ax.grid(False)


if __name__ == "__main__":
    section.main()
