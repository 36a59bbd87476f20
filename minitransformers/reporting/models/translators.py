"""Two models that have learned from verses, for sections to begin with: each trained once, kept beside this file.

A Transformer of 2017 puts the English of the 1390s into that of 2000. A T5 writes either, whichever it reads: a prefix says which is wanted, and
nothing else does; of what it learned from, a third was to be repeated as it is. ``python -m minitransformers.reporting.models.translators transformer``
(or t5) trains one of them again, in some minutes of one processor, and writes its weights in float16. Both learned in batches of verses of like
length, with a part of what the decoder has written hidden from it (Bowman et al. 2016, arXiv:1511.06349, section 3.2): it can go on by its source.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minitransformers.basics.embedding import Embedding
from minitransformers.efficient.kv_cache import decode
from minitransformers.foundation import trees
from minitransformers.foundation.safetensors import write_safetensors
from minitransformers.models.t5 import T5, init_t5, load_t5, t5, t5_weights
from minitransformers.models.transformer import Transformer, init_transformer, load_transformer, transformer, transformer_weights
from minitransformers.reporting.measures import bits
from minitransformers.reporting.models.verses import END, GAP, SIZE, START, Pairs, Verse, decoded, encoded, load_verses, pairs
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled, labelled_loss

CALLS: dict[str, Callable] = {"transformer": transformer, "t5": t5}
WEIGHTS: dict[str, Callable] = {"transformer": transformer_weights, "t5": t5_weights}
FILES = {name: Path(__file__).with_name(f"verses_{name}.safetensors") for name in CALLS}
SIZES: dict[str, Any] = {"vocabulary": SIZE, "d_model": 96, "num_layers": 2, "num_heads": 4, "d_hidden": 256}
SETTINGS: dict[str, Any] = {"num_heads": 4}
THEN, NOW = "old: ", "modern: "                               # the prefixes of T5
BATCH, DECAY = 32, 0.1
STEPS = {"transformer": 3000, "t5": 6600}
PEAK = {"transformer": 3e-3, "t5": 2e-3}
HIDDEN = {"transformer": 0.25, "t5": 0.1}
LETTERS = {"transformer": 110, "t5": 80}                     # the longest verse that it learns from
LONGEST = 48                                                 # tokens that are written for a verse
COPIED = 0.35                                                # of what T5 learns from, source and target are the same


def load_translator() -> Transformer:
    """Its parameters; ``transformer(params, source=..., target=..., **SETTINGS)`` takes them."""
    return load_transformer(FILES["transformer"])


def load_two_way() -> T5:
    """Those of the T5 with two prefixes, THEN and NOW, each in front of what is read."""
    return load_t5(FILES["t5"])


def model(call: Callable, params: Any, inputs: tuple) -> tuple[Any, Callable]:
    """``call``, transformer or t5, on (source, mask, target)."""
    source, mask, target = inputs
    return call(params, source=source, target=target, mask=mask, **SETTINGS)


def nats(call: Callable, params: Any, sources: Sequence[list[int]], targets: Sequence[list[int]]) -> float:
    """Of all targets, given their sources, the ends included. Texts are encoded."""
    order, total = np.argsort([len(target) for target in targets], kind="stable"), 0.0
    for start in range(0, len(order), 48):
        some = pairs(*([side[i] for i in order[start : start + 48]] for side in (sources, targets)))
        total += float(labelled_loss(*model(call, params, some[:3]), some.labels)[0][0])
    return total


def greedy(step: Callable, params: Any, sources: Sequence[list[int]]) -> list[str]:
    """What is written for sources, the most likely token each time, 50 texts at once. step is transformer_step or t5_step."""
    texts: list[list[int]] = []
    for start in range(0, len(sources), 50):
        some = pairs(sources[start : start + 50], [[END]] * len(sources[start : start + 50]))
        texts += decode(partial(step, params, source=some.source, mask=some.mask, **SETTINGS), some.target, num_tokens=LONGEST)[0].tolist()
    return [decoded(ids) for ids in texts]


def drawn(rng: np.random.Generator, sides: Sequence[Sequence[list[int]]], order: Any, *, hidden: float, prefixes: Sequence[list[int]] = ()) -> Pairs:
    """A batch of neighbours in order, so that they are about as long. sides are all texts then and all texts now, encoded.

    With two prefixes each pair goes one of four ways: into either English, out of the other or, for COPIED of them, out of the same.
    """
    start = rng.integers(-BATCH // 2, len(order) - BATCH // 2)
    sources, targets = [], []
    for row in order[np.clip(np.arange(start, start + BATCH), 0, len(order) - 1)]:
        into = int(rng.integers(2)) if prefixes else 1
        out_of = into if prefixes and rng.random() < COPIED else 1 - into
        sources.append([*(prefixes[into] if prefixes else []), *sides[out_of][row]])
        targets.append(sides[into][row])
    batch = pairs(sources, targets)
    hides = rng.random(batch.target.shape) < hidden
    return batch._replace(target=np.where(hides & (batch.target != START), GAP, batch.target))


def encoded_sides(verses: Sequence[Verse]) -> tuple[list[list[int]], list[list[int]]]:
    """All texts then, and all texts now."""
    return [encoded(verse.then) for verse in verses], [encoded(verse.now) for verse in verses]


def prefix(text: str) -> list[int]:
    """The ids of what stands in front of a source."""
    return encoded(text)[:-1]


def fresh_t5(rng: np.random.Generator) -> T5:
    """Its own start, but for the embedding: of deviation 0.2, where 1 would take AdamW, whose steps have one size for all, too long."""
    params = init_t5(rng, **SIZES, d_head=SIZES["d_model"] // SIZES["num_heads"])
    return params._replace(embedding=Embedding((0.2 * params.embedding.weight).astype(np.float32)))


def trained(name: str, rng: np.random.Generator, *, steps: int, peak: float, watch: Callable | None = None) -> Any:
    """A model of this name after as many updates."""
    sides = encoded_sides([verse for verse in load_verses()[0] if max(len(verse.then), len(verse.now)) <= LETTERS[name]])
    order = np.argsort([len(then) + len(now) for then, now in zip(*sides, strict=True)], kind="stable")
    params: Any = fresh_t5(rng) if name == "t5" else init_transformer(rng, **SIZES)
    prefixes = [prefix(THEN), prefix(NOW)] if name == "t5" else []

    def draw(rng: np.random.Generator) -> tuple[tuple, Any]:
        batch = drawn(rng, sides, order, hidden=HIDDEN[name], prefixes=prefixes)
        return batch[:3], batch.labels

    return fit(params, Labelled(partial(model, CALLS[name]), draw), steps=steps, peak=peak, rng=rng, warmup=0.15, floor=0.02, weight_decay=DECAY, watch=watch)


def into_modern(name: str, params: Any, verses: Sequence[Verse]) -> tuple[float, float]:
    """Bits a character of today's texts, given the old ones, and given those of other verses."""
    then, now = encoded_sides(verses)
    sources = [[*(prefix(NOW) if name == "t5" else []), *text] for text in then]
    letters = sum(len(verse.now) + 1 for verse in verses)
    right, wrong = (bits(nats(CALLS[name], params, given, now)) / letters for given in (sources, sources[1:] + sources[:1]))
    return right, wrong


def main() -> None:
    """Train one and write it."""
    name = sys.argv[1]
    held, losses = [verse for verse in load_verses()[1] if max(len(verse.then), len(verse.now)) <= LETTERS[name]][::4], []

    def watch(step: int, loss: float, params: Any) -> None:
        losses.append(loss)
        if step % 100 == 0:
            right, wrong = into_modern(name, params, held)
            print(f"{step}: {np.mean(losses[-100:]):.3f} nats a token; into today's {right:.3f} bits a character, of another verse {wrong:.3f}", flush=True)

    params = trained(name, np.random.default_rng(0), steps=STEPS[name], peak=PEAK[name], watch=watch)
    right, _ = into_modern(name, params, held)
    metadata = {"format": "pt", "bits per character": f"{right:.4f}", "updates": f"{STEPS[name]}", "text": "verses.tsv.xz, without its tests"}
    write_safetensors(FILES[name], WEIGHTS[name](trees.map(lambda leaf: leaf.astype(np.float16), params)), metadata=metadata)
    print(f"{FILES[name].name}: {right:.3f} bits a character, {FILES[name].stat().st_size // 1000:,} kB")


if __name__ == "__main__":
    main()
