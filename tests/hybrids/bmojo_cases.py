"""Calls of B'MOJO that its test files share: parameters of which none is where it started, and what can stand in the slots."""

from functools import partial

import numpy as np

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.prepare import on_both, unprepared
from minitransformers.attention.scalable_softmax import ScalableSoftmax, scalable_softmax_attention
from minitransformers.attention.sigmoid_attention import SigmoidAttention, sigmoid_attention
from minitransformers.attention.soft_cap import soft_capped_attention
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one_attention
from minitransformers.attention.sparsemax import sparsemax_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients, trees, trusted
from minitransformers.hybrids.bmojo import Bmojo, init_bmojo
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.positional.rope import rope

HEADS = 2
SIZES = {"num_heads": HEADS, "window": 3, "memory": 2}

checked = trusted(check_gradients)  # the shapes are known to fit


def case(positions=14, d_model=8, seed=0, dtype=np.float64, batch=(2,), **sizes):
    rng = np.random.default_rng(seed)
    params = init_bmojo(rng, d_model, num_heads=HEADS, bias=True, dtype=np.float64, **{"d_state": 2, "d_conv": 3, **sizes})
    ssm = params.ssm._replace(out_proj=params.ssm.out_proj._replace(weight=4 * params.ssm.out_proj.weight))  # as large as the tokens
    params = trees.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape), params._replace(ssm=ssm))
    return trees.cast(params, dtype), rng.normal(size=(*batch, positions, d_model)).astype(dtype)


def small(positions=8):
    """For differences: few numbers; still two features a head, which a rotation needs."""
    params, x = case(positions=positions, d_model=2, batch=(), d_state=1, d_conv=2, expand=1)
    rng = np.random.default_rng(7)
    maps = (Linear(rng.normal(size=shape) / 2, rng.normal(size=shape[1]) / 2) for shape in ((2, 4), (2, 4), (2, 4), (4, 2)))
    return Bmojo(params.ssm, *maps), x


def _gains(rng, d_head):
    return QkNorm(*rng.uniform(0.5, 1.5, size=(2, d_head)))


# name: (function, what it learns for heads of that width)
PREPARES = {
    "none": (unprepared, lambda rng, d_head: None),
    "rope": (on_both(rope), lambda rng, d_head: None),
    "QK-norm": (qk_norm, _gains),
    "QK-norm, then rope": (partial(chain, parts=(qk_norm, on_both(rope))), lambda rng, d_head: (_gains(rng, d_head), None)),
}

# name: (function, what it learns for so many heads)
CORES = {
    "softmax": (softmax_attention, lambda rng, heads: None),
    "soft cap": (partial(soft_capped_attention, cap=0.7), lambda rng, heads: None),
    "SSMax": (scalable_softmax_attention, lambda rng, heads: ScalableSoftmax(*rng.normal(size=(2, heads)))),
    "sink": (softmax_off_by_one_attention, lambda rng, heads: SoftmaxOffByOne(rng.normal(size=heads))),
    "sparsemax": (sparsemax_attention, lambda rng, heads: None),
    "sigmoid": (sigmoid_attention, lambda rng, heads: SigmoidAttention(rng.normal(size=heads))),
}


def with_slots(params, prepare, core, seed=5):
    """The parameters with what the two learn, and the two as settings."""
    rng = np.random.default_rng(seed)
    d_head = params.query.weight.shape[1] // HEADS
    (prepare, prepare_learns), (core, core_learns) = PREPARES[prepare], CORES[core]
    learned = trees.cast((prepare_learns(rng, d_head), core_learns(rng, HEADS)), params.query.weight.dtype)
    return params._replace(prepare=learned[0], core=learned[1]), {"prepare": prepare, "core": core}


def noting(seen):
    """A prepare that notes the positions that it is told, which every prepare is, and changes nothing."""

    def prepare(params, query, key, *, positions):
        seen.append(positions)
        return unprepared(params, query, key, positions=positions)

    return prepare
