"""A small language model with its norms before its parts, after them or nowhere, from a full start or a smaller one: what sections on placements share.

Four layers with RoPE learn real text. Of one start and one seed all begin with the same weights: norms draw nothing. Each learns at a rate of its
own, and some at pre-norm's as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from minitransformers.attention.multi_head_attention import multi_head_attention
from minitransformers.attention.prepare import on_both
from minitransformers.basics.feed_forward import feed_forward
from minitransformers.basics.linear import linear
from minitransformers.foundation import trees
from minitransformers.models.workbench.transformer_block import post_norm, pre_norm, transformer_block
from minitransformers.norms.deep_norm import deep_norm_constants
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.positional.rope_fast import rope_fast
from minitransformers.reporting.measures import bits_after, processor_seconds
from minitransformers.reporting.networks import init_decoder, init_without, network, without
from minitransformers.reporting.seeds import Found
from minitransformers.reporting.tables import mean_and_spread
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

LAYERS, WIDTH, HEADS, CONTEXT, BATCH, STEPS = 4, 48, 4, 32, 8, 150
OWN, SAME = "at its own rate", "at the rate that suits pre-norm"
PRE, POST, DEEP, NONE = "pre-norm", "post-norm", "DeepNorm", "no norm"
PLACEMENTS: dict[str, Callable] = {PRE: pre_norm, POST: post_norm, DEEP: partial(post_norm, alpha=deep_norm_constants(LAYERS).alpha), NONE: pre_norm}
RATES = (6e-4, 1.5e-3, 4e-3, 1e-2, 2.5e-2)


class Placed(NamedTuple):
    """Start is of the blocks' weights, in units of 1/√d_in, warmup a part of the steps; deleted: attention sees its own position alone."""

    placement: str
    start: float = 1.0
    warmup: float = 0.0
    deleted: bool = False

    def __str__(self) -> str:
        return self.placement + ", half start" * (self.start < 1) + ", warm-up" * (self.warmup > 0) + ", attention deleted" * self.deleted


@cache
def corpus() -> Corpus:
    """The text that they learn."""
    return Corpus.load(context=CONTEXT)


def fresh(of: Placed, rng: np.random.Generator) -> list[Any]:
    """Its parameters: pre-norm has a norm behind the last block."""
    init_norm: Callable = init_without if of.placement == NONE else init_layer_norm
    sizes: dict[str, Any] = {"num_layers": LAYERS, "num_heads": HEADS, "start": of.start, "last": of.placement == PRE}
    return init_decoder(rng, corpus().vocabulary.size, WIDTH, init_norm=init_norm, **sizes)


def trained(of: Placed, rng: np.random.Generator, *, rate: float, quick: bool, watch: Any = None) -> float:
    """Bits a character of the validation text."""
    alone = np.eye(CONTEXT, dtype=bool) if of.deleted else None
    mixer = partial(multi_head_attention, num_heads=HEADS, prepare=on_both(rope_fast))
    norm, placement = without if of.placement == NONE else layer_norm, PLACEMENTS[of.placement]
    block = partial(transformer_block, mixer=mixer, channel=feed_forward, norm=norm, placement=placement, mask=alone)
    model = network(*[block] * LAYERS, layer_norm if of.placement == PRE else without, linear)
    sizes: dict[str, Any] = {"context": CONTEXT, "batch_size": BATCH, "whole": not quick, "steps": 5 if quick else STEPS}
    return bits_after(model, fresh(of, rng), corpus(), rng=rng, peak=rate, warmup=of.warmup, floor=0.05, watch=watch, **sizes)


def at_both_rates(
    models: Mapping[str, Placed], rates: Mapping[str, float], rng: np.random.Generator, *, alike: Collection[str], quick: bool
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """For an experiment: each model at its OWN rate; and those of ``alike`` at the SAME, that of "pre", with their losses on the way there."""
    hold_blas()                                              # seeds run side by side, and the arrays are small
    seed = rng.integers(2**32)
    for name, of in models.items():
        own, same = rates[name], rates["pre"]
        for rate in dict.fromkeys((own, same) if name in alike else (own,)):
            nats: list[float] = []
            with processor_seconds() as spent:
                bits = trained(of, np.random.default_rng(seed), rate=rate, quick=quick, watch=lambda step, loss, params, nats=nats: nats.append(loss))
            if rate == own:
                yield name, OWN, {"bits": bits, "parameters": trees.count_parameters(fresh(of, rng)), "seconds": spent()}
            if rate == same and name in alike:
                yield name, SAME, {"bits": bits}
                every = max(1, len(nats) // 15)
                for step in range(every, len(nats) + 1, every):
                    yield name, step, {"training": np.mean(nats[step - every : step]) / np.log(2)}


def told(found: Found, models: Mapping[str, Placed], *names: str, rate: str = OWN) -> str:
    """What came out of some of them."""
    return ", ".join(f"{models[name]} {mean_and_spread(found['bits'][name][rate])}" for name in names) + f" bits a character, {rate}"
