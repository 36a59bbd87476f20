"""A small language model that learns real text with dense attention, and what patterns keep of its weights: what sections share that lay
patterns on it.

A pattern is that of ``patterns``, seen(query, key). Beside what it keeps stands what as many keys of every query would keep that are drawn at
random, that are the nearest, and that are the best there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.reporting.measures import bits, nats
from minitransformers.reporting.seeds import Found
from minitransformers.reporting.sparse_attention.patterns import Seen, dense, init_dense, kept_weight, met, read_through
from minitransformers.reporting.tables import mean_and_spread
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Labelled
from minitransformers.training.text import Corpus

LENGTH, WIDTH, HEADS, STEPS = 96, 48, 4, 300
TEXTS, FIRST = 16, 32                                        # that are measured, and their first query: earlier ones have few keys to choose from
LAYERS = ("first layer", "second layer")
MEASURES = ("pairs", "kept", "random", "nearest", "best")
COLUMNS = ("pattern", "in the", "pairs seen", "weight kept", "as many at random", "as many nearest", "as many best")
model = partial(dense, num_heads=HEADS)


@cache
def corpus() -> Corpus:
    """The text that it learns."""
    return Corpus.load(context=LENGTH)


def trained(rng: np.random.Generator, *, rate: float, steps: int = STEPS) -> list[Any]:
    """Its parameters after so many updates."""
    params = init_dense(rng, corpus().vocabulary.size, WIDTH, num_layers=len(LAYERS), num_heads=HEADS, std=0.1)
    task = Labelled(model, partial(corpus().batch, batch_size=8, context=LENGTH))
    return fit(params, task, steps=steps, peak=rate, rng=rng, warmup=0.1, floor=0.05)


def unread(count: int = TEXTS) -> tuple[Array, Array]:
    """Texts that it has not learned from: ids, and what follows them."""
    return next(corpus().evaluation_batches(batch_size=count, context=LENGTH, limit=count))


def bits_of(params: list[Any], texts: tuple[Array, Array], **settings: Any) -> float:
    """Bits a character, from query FIRST on; settings are those of the model, such as cores."""
    ids, targets = texts
    return bits(nats(model(params, ids, **settings)[0], np.where(np.arange(LENGTH) < FIRST, IGNORED, targets)))


def laid_on(params: list[Any], seers: Sequence[Mapping[str, Seen]], rng: np.random.Generator) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """For an experiment: what it predicts through each pattern, "both" layers at once, and what the pattern keeps in each. seers: a layer each."""
    texts = unread()
    for name in seers[0]:
        yield name, "both", {"bits": bits_of(params, texts, cores=[read_through(of_layer[name]) for of_layer in seers])}
    for layer, both, of_layer in zip(LAYERS, met(params, texts[0], num_heads=HEADS), seers, strict=True):
        for name, shares in kept_weight(rng, *both, of_layer, first=FIRST).items():
            yield name, layer, shares


def told(found: Found, other: str, *names: str) -> str:
    """What patterns keep in each layer, and then as many keys that are chosen otherwise."""

    def each(measure: str) -> str:
        return ", ".join(f"{name} {' and '.join(mean_and_spread(of) for of in found[measure][name].values())}" for name in names)

    return "; ".join(f"{measure}: {each(measure)}" for measure in ("kept", other))


def more(found: Found, name: str, other: str) -> list[float]:
    """How much more a pattern keeps than as many keys that are chosen otherwise, in each layer."""
    return [found["kept"][name][layer] - found[other][name][layer] for layer in LAYERS]


def rows(found: Found) -> list[list[str]]:
    """Of a table with COLUMNS."""
    return [[name, layer, *(mean_and_spread(found[measure][name][layer]) for measure in MEASURES)] for layer in LAYERS for name in found["kept"]]


def means(found: Found, name: str) -> dict[str, float]:
    """What is stated of a pattern: {"first.kept": number}, and "bits"."""
    shares = {f"{layer.split()[0]}.{measure}": found[measure][name][layer].mean() for layer in LAYERS for measure in MEASURES}
    return {**shares, "bits": found["bits"][name]["both"].mean()}


def draw(axes: Any, found: Found) -> None:
    """A row for each pattern: what it keeps (dot), as many nearest keys (tick), and from as many at random to as many best (bar)."""
    for ax, layer in zip(axes, LAYERS, strict=True):
        for place, name in enumerate(found["kept"]):
            at = {measure: np.mean(found[measure][name][layer]) for measure in MEASURES}
            ax.plot([at["random"], at["best"]], [place, place], color="#808080", linewidth=3, alpha=0.5, solid_capstyle="butt")
            ax.plot(at["nearest"], place, "|", color="#d0691f", markersize=11, markeredgewidth=2)
            ax.plot(at["kept"], place, "o", color="#2f7ebf")
        ax.set(title=layer, xlabel="share of the weight", xlim=(0, 1.02))
    axes[0].set_yticks(range(len(found["kept"])), list(found["kept"]))
    axes[0].invert_yaxis()
