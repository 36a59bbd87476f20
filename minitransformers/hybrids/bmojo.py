"""B'MOJO: one softmax over three memories: the last tokens, a recurrence's fading summary, and the surprises of long ago.

Window: the last ``window`` tokens, exact. Fading: the outputs of a state-space model at the ``window`` positions before
those. Eidetic: the ``memory`` tokens that were hardest to predict, kept verbatim however old. memory = 0 is B'MOJO-F.
Source: Zancato et al. 2024, arXiv:2407.06324; which fading tokens a query sees is that of the authors' later code for
B'MOJO-F (hybrid-model-factory). Open in the paper, or otherwise here:

- the predictor, the threshold and the schedule of the innovation test: ours, see ``eidetic_memory``; one set for all heads;
- every query has its own window and its own set, where the paper moves on in chunks;
- tokens and fading tokens share W_k and W_v; no grouped heads. The state-space model is Mamba; the paper allows any.

split, merge, the prepare P, the core A and the star are those of multi_head_attention. A is softmax attention unless another is
put in.

    fading = mamba(x)                                        (1)
    innovation_t = how far x_t is from its prediction by fading_{t-1}         (2)
    E_i = the memory largest innovations among j <= i - window                (3)
    query = split(x W_q), key = split([x, fading] W_k), value = split([x, fading] W_v)   (4)
    query, key = P(query, key), both kinds of token at their own position     (5)
    i sees x_j for i - window < j <= i and for j in E_i, fading_j for i - 2 window < j <= i - window   (6)
    heads = A(query, key, value), under the mask of (6)      (7)
    out = merge(heads) W_o                                   (8)
    dheads = split(dout W_o^T)                               (9)
    dquery, dkey, dvalue = A*(dheads)                        (10)
    dquery, dkey = P*(dquery, dkey)                          (11)
    dtokens = dkey W_k^T + dvalue W_v^T, for x and fading    (12)
    dx = dtokens of x + dquery W_q^T + mamba*(dtokens of fading)              (13)

(2) and (3) choose, and a choice is piecewise constant: its derivative is zero almost everywhere, and the backward holds
the set fixed. Where two innovations change places the output jumps, which no gradient tells.

This is the plain form: one mask over all 2 positions, time and memory O(positions^2). bmojo_blocks is the same map at
O(positions (window + memory)); models use it, and its step to decode.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.heads import check_heads, check_per_head, merge_heads, split_heads
from minitransformers.attention.prepare import unprepared
from minitransformers.basics.causal_convolution import CausalConvolution
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example
from minitransformers.hybrids.eidetic_memory import Memory, Window, eidetic_mask, innovation
from minitransformers.state_space.mamba import Mamba, init_mamba, mamba


class Bmojo(NamedTuple):
    """The state-space model that makes the fading tokens, and attention's four maps; what the slots learn, None for nothing."""

    ssm: Mamba
    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_heads"]
    value: Annotated[Linear, "d_model d_values"]
    output: Annotated[Linear, "d_values d_model"]
    prepare: Any = None
    core: Any = None


@checked
def init_bmojo(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    d_state: Annotated[int, at_least(1)] = 16, expand: Annotated[int, at_least(1)] = 2, d_conv: Annotated[int, at_least(1)] = 4,
    std: Annotated[float, at_least(0)] | None = None, residual_std: Annotated[float, at_least(0)] | None = None, bias: bool = False,
    dtype: type = np.float32,
) -> Bmojo:  # fmt: skip
    """Attention's maps of deviation ``std`` (default 1/sqrt(d_model)), the output's of ``residual_std`` (default std).

    The state-space model starts at its own scale whatever std is: its outputs are read beside the tokens themselves.
    """
    check_heads("num_heads", num_heads, d_model)
    ssm = init_mamba(rng, d_model, d_state=d_state, expand=expand, d_conv=d_conv, dtype=dtype)
    stds = (std, std, std, std if residual_std is None else residual_std)
    return Bmojo(ssm, *(init_linear(rng, d_model, d_model, std=s, bias=bias, dtype=dtype) for s in stds))


@concept(
    title="B'MOJO",
    source="Zancato et al. 2024, arXiv:2407.06324",
    example=lambda rng: example_call(rng),
    large=lambda rng: large_call(rng),
    rejects=[bad(num_heads=3)],
)
def bmojo(
    params: Bmojo, x: Float[Array, "*batch positions d_model"], *, num_heads: Annotated[int, at_least(1)], window: Window = 16,
    memory: Memory = 16, prepare: Callable = unprepared, core: Callable = softmax_attention,
) -> tuple[Array, Backward]:  # fmt: skip
    """Each position attends to the last window tokens, to memory surprising older ones, and to window fading tokens.

    prepare and core are those of multi_head_attention; keys are told the positions of their tokens, and core is any that
    takes a mask. A scale of the scores is a setting of the core (functools.partial).
    Returns out, shaped like x, and backward: dout -> Bmojo of gradients, dx.
    Raises ValueError where heads and features do not divide.
    """
    check_parts(params, num_heads)
    fading, ssm_backward = mamba(params.ssm, x)              # (1)
    surprise, _ = innovation(x, fading)                      # (2)
    kept = eidetic_mask(surprise, window=window, memory=memory)  # (..., queries, positions)  (3)

    streams = np.stack([x, fading])                          # an axis in front: row j is position j in both
    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, streams)
    value, value_backward = linear(params.value, streams)
    query, key, value = (split_heads(part, num_heads) for part in (query, key, value))  # (4)
    (query, key), prepare_backward = prepare(params.prepare, query, key, positions=None)  # (5)
    i, j = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-2])
    sees_token = kept | ((i - window < j) & (j <= i))
    sees_fading = np.broadcast_to((i - 2 * window < j) & (j <= i - window), kept.shape)
    sees = np.concatenate([sees_token, sees_fading], axis=-1)[..., None, :, :]  # the same for every head  (6)
    keys, values = (np.concatenate(part, axis=-2) for part in (key, value))  # (..., heads, 2 positions, d)
    heads, core_backward = core(params.core, query, keys, values, mask=sees)  # (7)
    out, output_backward = linear(params.output, merge_heads(heads))  # (8)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dheads = split_heads(dmerged, num_heads)             # (9)
        dcore, dquery, dkeys, dvalues, _ = core_backward(dheads)
        dkey, dvalue = (np.stack(np.split(part, 2, axis=-2)) for part in (dkeys, dvalues))  # (10)
        dprepare, dquery, dkey = prepare_backward((dquery, dkey))  # (11)
        dparams_query, dx_query = query_backward(merge_heads(dquery))
        dparams_key, dstreams_key = key_backward(merge_heads(dkey))
        dparams_value, dstreams_value = value_backward(merge_heads(dvalue))
        dx_tokens, dfading = dstreams_key + dstreams_value   # (12)
        dssm, dx_fading = ssm_backward(dfading)
        dx = dx_tokens + dx_query + dx_fading                # as a token, as a query, and through the recurrence  (13)
        return Bmojo(dssm, dparams_query, dparams_key, dparams_value, doutput, dprepare, dcore), dx

    return out, backward


def check_parts(params: Bmojo, num_heads: int) -> None:
    """Raise ValueError where heads do not divide, or the core learns something for another number of them."""
    for projection in (params.query, params.value):
        check_heads("num_heads", num_heads, projection.weight.shape[1])
    check_per_head("params.core", params.core, num_heads)


def example_call(rng: np.random.Generator):
    """The small call of both forms."""
    def normal(*shape):
        return 0.5 * rng.normal(size=shape)

    ssm = Mamba(
        Linear(normal(3, 10), normal(10)), CausalConvolution(normal(5, 2), normal(5)), Linear(normal(5, 6), None), Linear(normal(2, 5), normal(5)),
        rng.uniform(0, 0.5, size=(5, 2)), normal(5), Linear(normal(5, 3), None),
    )  # fmt: skip
    params = Bmojo(ssm, *(Linear(normal(*s), normal(s[1])) for s in ((3, 4), (3, 4), (3, 6), (6, 3))))
    return example(params, rng.normal(size=(2, 8, 3)), num_heads=2, window=3, memory=2)


def large_call(rng: np.random.Generator):
    """The same where every number will be a thousand times larger: in the state-space model many of them meet in one product."""
    def normal(*shape, std=0.03):
        return std * rng.normal(size=shape)

    # Gates of silu(-3): a thousand times larger they are shut, and no power of 1000 gets out.
    into = Linear(np.concatenate([normal(3, 5), normal(3, 5, std=1e-3)], axis=1), np.concatenate([normal(5), normal(5) - 3]))
    ssm = Mamba(
        into, CausalConvolution(normal(5, 2), 0.5 + normal(5)), Linear(normal(5, 6, std=0.005), None), Linear(normal(2, 5, std=0.01), normal(5)),
        rng.uniform(0, 0.01, size=(5, 2)), 1 + normal(5), Linear(normal(5, 3, std=1.0), None),
    )  # fmt: skip
    params = Bmojo(ssm, *(Linear(normal(*s, std=0.5), normal(s[1], std=1.0)) for s in ((3, 4), (3, 4), (3, 6), (6, 3))))
    return example(params, rng.normal(size=(2, 8, 3)) / 2, num_heads=2, window=3, memory=2)
