"""A small Llama that sections begin with where they need a model that has learned something: trained once, kept beside this file.

It has read Python's language reference, byte by byte, but for the last fifths of the six longest entries, which a section that sorts
lines into entries asks about. ``python -m minitransformers.reporting.base`` trains it again, in some minutes, and writes base.safetensors
with Hugging Face's names: ``transformers`` loads it as well.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.linear import init_linear, linear
from minitransformers.foundation.safetensors import write_safetensors
from minitransformers.models.llama import Llama, init_llama, llama, llama_weights, load_llama
from minitransformers.training.classification import Classification
from minitransformers.training.fit import fit
from minitransformers.training.language_modelling import LanguageModelling
from minitransformers.training.task import on_arrays
from minitransformers.training.text import Corpus

BASE = Path(__file__).with_name("base.safetensors")
LENGTH = 64
SIZES: dict[str, Any] = {"vocabulary": 256, "d_model": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "d_hidden": 176, "tied": True}
SETTINGS: dict[str, Any] = {"num_heads": 4}
STEPS, BATCH, PEAK = 3000, 8, 5e-3


def longest_entries(count: int = 6) -> dict[str, tuple[str, str]]:
    """The longest entries of the reference, each as what the base model may have read, four fifths, and what it has not."""
    from pydoc_data.topics import topics

    chosen = sorted(sorted(topics, key=lambda name: -len(topics[name]))[:count])
    cuts = {name: len(topics[name]) * 4 // 5 for name in chosen}
    return {name: (topics[name][: cuts[name]], topics[name][cuts[name] :]) for name in chosen}


def base_corpus() -> Corpus:
    """The text that the base model learned from, and, its last tenth, the text that it is judged by."""
    from pydoc_data.topics import topics

    known = {name: known for name, (known, _) in longest_entries().items()}
    text = "\n".join(known.get(name, topics[name]) for name in sorted(topics))
    return Corpus.from_text(text, context=LENGTH, vocabulary="bytes", name="Python language reference")


class Labelled(NamedTuple):
    """Lines of text, and for each the number of the entry that it is from."""

    lines: list[str]
    labels: Array


def labelled_lines(*, shortest: int, longest: int) -> tuple[Labelled, Labelled]:
    """Lines of the longest entries, to learn from and to be tested on, cut at ``longest`` characters; none stands in two entries.

    Those to learn from are among what the base model has read; none of the tests is. An entry with fewer than forty tests is left
    out: what its end says stands in other entries too.
    """

    def lines_of(text: str) -> list[str]:
        return list(dict.fromkeys(line.strip()[:longest] for line in text.splitlines() if len(line.strip()) >= shortest))

    entries, corpus = longest_entries().values(), base_corpus()
    read = set(lines_of(corpus.train_text + "\n" + corpus.validation_text))
    times = Counter(line for parts in entries for line in set(lines_of("\n".join(parts))))
    found = []
    for number in (0, 1):
        own = [[line for line in lines_of(parts[number]) if times[line] == 1 and (number == 0 or line not in read)] for parts in entries]
        found.append(own)
    kept = [label for label, tests in enumerate(found[1]) if len(tests) >= 40]

    def labelled(own: list[list[str]]) -> Labelled:
        return Labelled([line for label in kept for line in own[label]], np.repeat(np.arange(len(kept)), [len(own[label]) for label in kept]))

    return labelled(found[0]), labelled(found[1])


def padded(texts: list[str], length: int, *, fill: int = 0) -> tuple[Array, Array]:
    """The first bytes of each text, (texts, length), and which of them are no padding."""
    rows = [list(text.encode()[:length]) for text in texts]
    ids = np.array([row + [fill] * (length - len(row)) for row in rows])
    return ids, np.arange(length) < np.array([len(row) for row in rows])[:, None]


def chosen_lines(known: Labelled, number: int, rng: np.random.Generator) -> Labelled:
    """So many lines, as many of each entry, up to rounding."""
    classes = int(known.labels.max()) + 1
    order = np.concatenate([rng.permutation(np.flatnonzero(known.labels == label))[: -(-number // classes)] for label in range(classes)])
    return Labelled([known.lines[i] for i in order], known.labels[order])


def linear_probe(
    train: Array, labels: Array, test: Array, *, least: float, rng: np.random.Generator, steps: int, peak: float, batch_size: int
) -> Array:
    """The answers of a linear map that learns from features (examples, width), for others; each feature is standardised.

    least is added to its standard deviation.
    """
    middle, spread = train.mean(0), train.std(0) + least
    train, test = (((found - middle) / spread).astype(np.float32) for found in (train, test))
    task = Classification(on_arrays(linear), (train, labels), (train, labels), batch_size=batch_size)
    head = init_linear(rng, train.shape[1], int(labels.max()) + 1)
    return linear(fit(head, task, steps=steps, peak=peak, rng=rng, warmup=0.1, weight_decay=0.1), test)[0].argmax(-1)


def by_trigrams(texts: list[str], labels: Array, asked: list[str]) -> Array:
    """What naive Bayes on three characters answers: how often each entry has each of them, and one more for those that it does not have."""
    entries = range(int(labels.max()) + 1)
    counts = [Counter(part for text, own in zip(texts, labels, strict=True) if own == entry for part in _trigrams(text)) for entry in entries]
    different = len(set().union(*counts))
    scores = [[sum(math.log((of[part] + 1) / (of.total() + different)) for part in _trigrams(text)) for of in counts] for text in asked]
    return np.argmax(scores, axis=-1)


def _trigrams(text: str) -> list[str]:
    return [text[i : i + 3] for i in range(len(text) - 2)]


def balanced_accuracy(answers: Array, labels: Array) -> float:
    """The share of right answers, a mean over the entries: each counts alike, however many lines it has."""
    return float(np.mean([(answers[labels == label] == label).mean() for label in np.unique(labels)]))


def load_base() -> Llama:
    """Its parameters, in float32; ``llama(params, ids=ids, **SETTINGS)`` takes them."""
    return load_llama(BASE)


def trained_base(rng: np.random.Generator, *, steps: int = STEPS) -> tuple[Llama, LanguageModelling]:
    """A model of its sizes after as many updates, and the task that it learned."""
    task = LanguageModelling(base_corpus(), partial(llama, **SETTINGS), context=LENGTH, batch_size=BATCH)
    params = init_llama(rng, **SIZES, std=0.1)
    return fit(params, task, steps=steps, peak=PEAK, rng=rng, warmup=0.05, floor=0.05, weight_decay=0.3), task


def main() -> None:
    """Train it and write it."""
    params, task = trained_base(np.random.default_rng(0))
    measured = task.evaluate(params)["bits per character"]
    metadata = {"format": "pt", "bits per character": f"{measured:.4f}", "updates": f"{STEPS}", "text": "Python language reference, without six ends"}
    write_safetensors(BASE, llama_weights(params), metadata=metadata)
    print(f"{BASE.name}: {measured:.3f} bits a character, {math.ceil(BASE.stat().st_size / 1000):,} kB")


if __name__ == "__main__":
    main()
