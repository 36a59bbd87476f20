"""What can be put on a model of two_attributes so that it hides one of them: adapters, differences behind gates, and differences of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.bias_mitigation.debiasing_adapter import StackedAdapters
from minitransformers.bias_mitigation.hard_concrete import expected_l0
from minitransformers.bias_mitigation.masked_difference import init_masked_difference, masked_difference
from minitransformers.bias_mitigation.modular_debiasing import difference_module, module_size, with_modules
from minitransformers.foundation import reparameterize, trees
from minitransformers.peft.bottleneck_adapter import BottleneckAdapter, init_bottleneck_adapter
from minitransformers.peft.targets import at_targets
from minitransformers.reporting.bias_mitigation.two_attributes import (
    HIDDEN,
    Network,
    draw,
    log_probabilities,
    network,
    with_intervals,
)
from minitransformers.reporting.seeds import Found
from minitransformers.reporting.tables import mean_and_spread
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled, Loss

ADAPTERS, MASKS = "adapters of width 4", "differences behind gates"
ALL, VECTORS = "differences of all weights", "differences of biases and norms"
WAYS = {ADAPTERS: "adapters", MASKS: "masks", ALL: "all", VECTORS: "vectors"}
A, B, BOTH, OFF = "A", "B", "A and B", "off"                 # the names of modules: the attribute that each hides
BASE, SHARED = "no module", "shared evenly at decoding"      # what stands beside the ways
COLUMNS = ("way", "on", "gap A", "95 % of A", "gap B", "95 % of B", "A, unseen", "B, unseen", "nats a filler", "numbers stored")
PRICE, GATE_RATE = 0.5, 16.0                                 # of all gates open; how much faster than differences their logits learn


def learned(way: str, base: Network, wanted: Array, rng: np.random.Generator, *, rate: float, steps: int) -> Any:
    """The module that makes of the base a model of the language that is wanted, after so many updates."""
    settings = {"peak": rate, "steps": steps}
    if way == ADAPTERS:
        return adapter(base, wanted, rng, **settings)
    if way == MASKS:
        return difference_module(masked(base, wanted, rng, **settings))
    return weights(base, wanted, rng, vectors=way == VECTORS, **settings)


def on(way: str, base: Network, modules: Mapping[str, Any], names: Sequence[str]) -> Network:
    """The model with the modules of these names."""
    if way != ADAPTERS:
        return with_modules(base, modules=modules, on=names)
    stacked = StackedAdapters(*(modules[name] if name in names else None for name in (A, B)))
    return with_adapters(base, stacked) if names else base


def measured(
    way: str, base: Network, modules: Mapping[str, Any], language: Array, rng: np.random.Generator, *, resamples: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """With A on, with B, and with both: what two_attributes measures with intervals, and size, how many numbers are stored.

    And off, whether every array of the base has the bytes that it had before; of MASKS besides how much is open, and in both modules.
    """
    before = [leaf.tobytes() for _, leaf in trees.leaves(base)]
    sizes = {name: module_size(one) for name, one in modules.items()}
    for which, names in ((A, [A]), (B, [B]), (BOTH, [A, B])):
        found = with_intervals(log_probabilities(on(way, base, modules, names)), language, rng, resamples=resamples)
        yield which, found | {"size": sum(sizes[name] for name in names)}
    if way == MASKS:
        yield BOTH, overlap(*modules.values())
    yield OFF, {"restored": [leaf.tobytes() for _, leaf in trees.leaves(on(way, base, modules, []))] == before}


def overlap(one: Any, other: Any) -> dict[str, float]:
    """Of two modules of the same arrays: the share of numbers that are not 0, a mean of both, and of those that are so in both at once."""
    pairs = [(a != 0, b != 0) for (_, a), (_, b) in zip(trees.leaves(one), trees.leaves(other), strict=True)]
    size = sum(a.size for a, _ in pairs)
    return {"open": sum(int(a.sum() + b.sum()) for a, b in pairs) / 2 / size, "in both": sum(int((a & b).sum()) for a, b in pairs) / size}


# What is told
def numbers_of(found: Found, way: str, which: str) -> dict[str, Any]:
    """All measures of a way with these modules on."""
    return {measure: curves[way][which] for measure, curves in found.items() if which in curves.get(way, {})}


def told(found: Found, measure: str, ons: Sequence[str] = (A, B, BOTH)) -> str:
    """A measure of the base and of each way, in words."""
    said = [f"{way} " + ", ".join(mean_and_spread(found[measure][way][which]) for which in ons) for way in WAYS]
    return f"{BASE} {mean_and_spread(found[measure][BASE][BASE])}; with {', '.join(ons)}: " + "; ".join(said)


def rows(found: Found) -> Iterator[list[Any]]:
    """Rows of COLUMNS: the base, sharing, and each way with A, with B and with both."""
    for way, which in [(BASE, BASE), (SHARED, BOTH), *((way, which) for way in WAYS for which in (A, B, BOTH))]:
        one = numbers_of(found, way, which)
        gaps = []
        for gap in ("gap A", "gap B"):
            gaps += [mean_and_spread(one[gap]), f"{np.mean(one[f'{gap} low']):.2f} to {np.mean(one[f'{gap} high']):.2f}"]
        others = [mean_and_spread(one[f"gap {name} unseen"]) for name in (A, B)]
        yield [way, which if way != BASE else "–", *gaps, *others, mean_and_spread(one["nats"], ".3f"), int(np.mean(one["size"]))]


# The ways
def with_adapters(base: Network, adapters: StackedAdapters) -> Network:
    """The same model with these before its last map."""
    return base._replace(behind=(*base.behind[:2], adapters, base.behind[3]))


def adapter(base: Network, wanted: Array, rng: np.random.Generator, **settings: Any) -> BottleneckAdapter:
    """An adapter of width 4 that makes of the base a model of the language that is wanted."""

    def run(own: BottleneckAdapter, ids: Array) -> tuple[Array, Callable]:
        logits, backward = network(with_adapters(base, StackedAdapters(own)), ids)
        return logits, lambda dlogits: backward(dlogits).behind[2].debiasing

    start = init_bottleneck_adapter(rng, HIDDEN, d_bottleneck=4, std=0.1, residual_std=0.0)
    return fit(start, Labelled(run, partial(draw, of=wanted)), rng=rng, **settings)


def masked(base: Network, wanted: Array, rng: np.random.Generator, **settings: Any) -> Any:
    """Differences behind gates for the three matrices, as masked_difference takes them."""
    start = at_targets(init_masked_difference, base, ["front.*.weight", "behind.*.weight"])
    found = fit(_scaled(start, 1 / GATE_RATE), _Gated(base, wanted), rng=rng, **settings)
    return _scaled(found, GATE_RATE)


def weights(base: Network, wanted: Array, rng: np.random.Generator, *, vectors: bool, **settings: Any) -> Any:
    """Differences of all weights; vectors: of biases and norms alone, the arrays of one axis."""
    start = trees.map(np.copy, trees.partition(base, lambda path, leaf: leaf.ndim == 1 or not vectors)[0])

    def run(own: Any, ids: Array) -> tuple[Array, Callable]:
        tree, back = reparameterize(own, base=base)
        logits, backward = network(tree, ids)
        return logits, lambda dlogits: back(backward(dlogits))

    found = dict(trees.leaves(fit(start, Labelled(run, partial(draw, of=wanted)), rng=rng, **settings)))
    before = dict(trees.leaves(base))
    return trees.from_paths(start, {path: leaf - before[path] for path, leaf in found.items()})


def _scaled(tree: Any, factor: float) -> Any:
    """Logits of gates times a factor: so they learn at a rate of their own."""
    return trees.from_paths(tree, {path: leaf * np.float32(factor) if path.endswith("alpha") else leaf for path, leaf in trees.leaves(tree)})


class _Gated(Labelled):
    """The task with noise on the gates, and a price for those that are open."""

    def __init__(self, base: Network, wanted: Array) -> None:
        super().__init__(self.run, partial(draw, of=wanted), random=True)
        self.base = base

    def run(self, own: Any, ids: Array, *, rng: np.random.Generator) -> tuple[Array, Callable]:
        tree, back = reparameterize(_scaled(own, GATE_RATE), base=self.base, change=partial(masked_difference, rng=rng))
        logits, backward = network(tree, ids)
        return logits, lambda dlogits: _scaled(back(backward(dlogits)), GATE_RATE)

    def loss(self, params: Any, batch: Any, *, rng: np.random.Generator) -> Loss:
        (total, count), backward = super().loss(params, batch, rng=rng)
        alphas = {path: leaf for path, leaf in trees.leaves(params) if path.endswith("alpha")}
        price = PRICE * count / sum(alpha.size for alpha in alphas.values())
        parts = {path: expected_l0(GATE_RATE * alpha) for path, alpha in alphas.items()}

        def both(dloss: Any) -> Any:
            found = dict(trees.leaves(backward(dloss)))
            for path, (_, l0_backward) in parts.items():
                found[path] = found[path] + (GATE_RATE * price * dloss[0] * l0_backward(np.float32(1))).astype(np.float32)
            return trees.from_paths(params, found)

        return (total + price * sum(number for number, _ in parts.values()), count), both


