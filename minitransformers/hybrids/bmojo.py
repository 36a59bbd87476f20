"""B'MOJO: one softmax over three memories: the last tokens, a recurrence's fading summary, and the surprises of long ago.

Window: the last ``window`` tokens, exact. Fading: the outputs of a state-space model at the ``window`` positions before
those. Eidetic: the ``memory`` tokens that were hardest to predict, kept verbatim however old. memory = 0 is B'MOJO-F.
Time and memory O(positions (window + memory) d_model); decoding keeps a state of constant size.
Source: Zancato et al. 2024, arXiv:2407.06324; which fading tokens a query sees is that of the authors' later code for
B'MOJO-F (hybrid-model-factory). Open in the paper, or otherwise here:

- the predictor, the threshold and the schedule of the innovation test: ours, see ``eidetic_memory``; one set for all heads;
- every query has its own window and its own set, where the paper moves on in chunks;
- tokens and fading tokens share W_k and W_v; no grouped heads. The state-space model is Mamba; the paper allows any.

    fading = mamba(x)                                        (1)
    innovation_t = how far x_t is from its prediction by fading_{t-1}         (2)
    E_i = the memory largest innovations among j <= i - window                (3)
    query = split(x W_q), key = split([x, fading] W_k), value = split([x, fading] W_v)   (4)
    query, key = rotate(query), rotate(key), both kinds of token at their own position   (5)
    near = the rows that some query of a block sees          (6)
    i sees x_j for i - window < j <= i and for j in E_i, fading_j for i - 2 window < j <= i - window   (7)
    heads = attention(query, near keys, near values) under (7), one softmax   (8)
    out = merge(heads) W_o                                   (9)
    dheads = split(dout W_o^T)                               (10)
    dquery, dnear = gradients of attention at dheads         (11)
    dkey_j, dvalue_j = sum of dnear over all places where j stands            (12)
    dquery, dkey = rotated back                              (13)
    dtokens = dkey W_k^T + dvalue W_v^T, for x and fading    (14)
    dx = dtokens of x + dquery W_q^T + gradient of mamba at dtokens of fading (15)

(2) and (3) choose, and a choice is piecewise constant: its derivative is zero almost everywhere, and the backward holds
the set fixed. Where two innovations change places the output jumps, which no gradient tells.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads, merge_heads, split_heads
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.basics.embedding import Embedding, embedding
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import bad, concept, example, invalid, trusted, whole_number
from minitransformers.hybrids.eidetic_memory import Eidetic, Predictor, admit, choose, innovation
from minitransformers.state_space.causal_convolution import CausalConvolution
from minitransformers.state_space.mamba import Mamba, MambaState, init_mamba, mamba, mamba_step


class Bmojo(NamedTuple):
    """The state-space model that makes the fading tokens, and attention's four maps."""

    ssm: Mamba
    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_heads"]
    value: Annotated[Linear, "d_model d_values"]
    output: Annotated[Linear, "d_values d_model"]


class BmojoState(NamedTuple):
    """What is kept of the past, in rows of a key and a value side by side.

    window holds the last window tokens at most, fading twice as many (the younger half waits until its tokens have left
    the window), eidetic at most memory.
    """

    ssm: MambaState | None
    predictor: Predictor | None
    length: int
    window: Float[Array, "*batch heads recent d_row"]
    innovation: Float[Array, "*batch recent"]
    fading: Float[Array, "*batch heads faded d_row"]
    eidetic: Eidetic


def init_bmojo(
    rng: np.random.Generator, d_model: int, *, num_heads: int, d_state: int = 16, expand: int = 2, d_conv: int = 4,
    std: float | None = None, residual_std: float | None = None, bias: bool = False, dtype: type = np.float32,
) -> Bmojo:  # fmt: skip
    """Attention's maps of deviation ``std`` (default 1/sqrt(d_model)), the output's of ``residual_std`` (default std).

    The state-space model starts at its own scale whatever std is: its outputs are read beside the tokens themselves.
    """
    check_heads("num_heads", num_heads, d_model)
    ssm = init_mamba(rng, d_model, d_state=d_state, expand=expand, d_conv=d_conv, dtype=dtype)
    stds = (std, std, std, std if residual_std is None else residual_std)
    return Bmojo(ssm, *(init_linear(rng, d_model, d_model, std=s, bias=bias, dtype=dtype) for s in stds))


@trusted
def bmojo_step(
    params: Bmojo, x: Float[Array, "*batch new d_model"], state: BmojoState | None, *, num_heads: int, window: int = 16, memory: int = 16,
    scale: float | None = None, rotate: Callable | None = None,
) -> tuple[Array, BmojoState]:  # fmt: skip
    """The outputs at a few new positions, given those before; ``state`` is None at the start.

    Returns out, shaped like x, and the state after them, which never grows beyond 3 window + memory rows a head; nothing
    is written to. Forward only.
    """
    _check(num_heads, window, memory, params)
    *batch, new, _ = x.shape
    d_head = params.key.weight.shape[1] // num_heads
    if state is None:
        no_rows = np.zeros((*batch, num_heads, 0, d_head + params.value.weight.shape[1] // num_heads), x.dtype)
        nothing = Eidetic(no_rows, np.zeros((*batch, 0)), np.zeros((*batch, 0), int))
        state = BmojoState(None, None, 0, no_rows, nothing.innovation, no_rows, nothing)
    faded, ssm = mamba_step(params.ssm, x, state.ssm)
    surprise, predictor = innovation(x, faded, state.predictor)
    tokens = np.stack([x, faded])
    query, key, value = (split_heads(linear(p, t)[0], num_heads) for p, t in zip(params[1:4], (x, tokens, tokens), strict=True))
    if rotate is not None:
        positions = np.arange(state.length, state.length + new)
        query, key = rotate(query, positions=positions)[0], rotate(key, positions=positions)[0]
    own_rows, faded_rows = np.concatenate([key, value], axis=-1)
    recent, fading, waiting, kept = state.window, state.fading, state.innovation, state.eidetic
    heads = []
    for t in range(new):
        recent = np.concatenate([recent, own_rows[..., t : t + 1, :]], axis=-2)
        fading = np.concatenate([fading, faded_rows[..., t : t + 1, :]], axis=-2)[..., -2 * window :, :]
        waiting = np.concatenate([waiting, surprise[..., t : t + 1]], axis=-1)
        if recent.shape[-2] > window:                        # the oldest leaves the window: is it kept?
            kept = admit(kept, recent[..., :1, :], waiting[..., 0], state.length + t - window, memory=memory)
            recent, waiting = recent[..., 1:, :], waiting[..., 1:]
        seen = np.concatenate([recent, fading[..., :-window, :], kept.rows], axis=-2)
        heads.append(scaled_dot_product_attention(query[..., t : t + 1, :], seen[..., :d_head], seen[..., d_head:], scale=scale)[0])
    out, _ = linear(params.output, merge_heads(np.concatenate(heads, axis=-2)))
    return out, BmojoState(ssm, predictor, state.length + new, recent, waiting, fading, kept)


def _check(num_heads: int, window: int, memory: int, params: Bmojo) -> None:
    check_heads("num_heads", num_heads, params.query.weight.shape[1])
    check_heads("num_heads", num_heads, params.value.weight.shape[1])
    if params.ssm.in_proj.weight.shape[0] != (d_model := params.query.weight.shape[0]):
        raise invalid("params.ssm", got=f"{params.ssm.in_proj.weight.shape[0]} features", wants=f"{d_model}, as params.query has")
    whole_number("window", window, least=1)
    whole_number("memory", memory, least=0)


def _near(stream: Array, places: Array, window: int):
    """All rows that some query of a block sees, side by side: the memory's, two blocks of tokens, two of fading tokens.

    stream (2, *batch, heads, positions, d) holds the tokens, then the fading tokens. Backward: dnear -> dstream.
    """
    *outer, n, d = stream.shape[1:]
    own, faded = _to_blocks(stream[0], window, before=1), _to_blocks(stream[1], window, before=2)
    kept = own[..., 1:, :0, :]
    if memory := places.shape[-1]:                           # tokens are a table, and the memory looks up rows of it
        starts = n * np.arange(stream[0].size // (n * d)).reshape(*outer, 1, 1)
        kept, lookup_backward = embedding(Embedding(stream[0].reshape(-1, d)), ids=starts + np.maximum(places, 0)[..., None, :, :])
    parts = [kept, own[..., :-1, :, :], own[..., 1:, :, :], faded[..., :-2, :, :], faded[..., 1:-1, :, :]]
    near = np.concatenate(parts, axis=-2)                    # (..., heads, blocks, memory + 4 window, d)  (6)

    def backward(dnear):
        dkept, dbefore, dhere, dolder, dold = np.split(dnear, memory + window * np.arange(4), axis=-2)
        down, dfaded = np.zeros_like(own), np.zeros_like(faded)
        down[..., :-1, :, :] = dbefore
        down[..., 1:, :, :] += dhere
        dfaded[..., :-2, :, :] = dolder
        dfaded[..., 1:-1, :, :] += dold
        dstream = np.stack([_from_blocks(down[..., 1:, :, :], n), _from_blocks(dfaded[..., 2:, :, :], n)])
        if memory:
            dstream[0] += lookup_backward(dkept).weight.reshape(stream[0].shape)  # one look-up a block: they add  (12)
        return dstream

    return near, backward


def _visible(chosen: Bool[Array, "*batch blocks window both"], memory: int) -> Bool[Array, "*batch 1 blocks window near"]:
    """Which rows of ``near`` each query of a block sees."""
    *_, blocks, window, _ = chosen.shape
    block = np.arange(blocks)[:, None, None]
    up_to = np.tri(window, dtype=bool)                       # in a block: up to the place that the query has in its own
    sees = np.empty((*chosen.shape[:-1], memory + 4 * window), bool)
    sees[..., : memory + window] = chosen
    before, here, older, old = np.split(sees[..., memory:], 4, axis=-1)
    before |= ~up_to & (block >= 1)                          # chosen, or in the window still
    here[:] = up_to
    older[:] = ~up_to & (block >= 2)
    old[:] = up_to & (block >= 1)                            # (7)
    return sees[..., None, :, :, :]                          # the same for every head


def _example(rng: np.random.Generator) -> Bmojo:
    def normal(*shape, std=0.03):
        return std * rng.normal(size=shape)

    # Gates of silu(-3): where a check takes all numbers a thousand times larger they are shut, and no power of 1000 gets out.
    into = Linear(np.concatenate([normal(3, 5), normal(3, 5, std=1e-3)], axis=1), np.concatenate([normal(5), normal(5) - 3]))
    ssm = Mamba(
        into, CausalConvolution(normal(5, 2), 0.5 + normal(5)), Linear(normal(5, 6, std=0.005), None), Linear(normal(2, 5, std=0.01), normal(5)),
        rng.uniform(0, 0.01, size=(5, 2)), 1 + normal(5), Linear(normal(5, 3, std=1.0), None),
    )  # fmt: skip
    return Bmojo(ssm, *(Linear(normal(*s, std=0.5), normal(s[1], std=1.0)) for s in ((3, 4), (3, 4), (3, 6), (6, 3))))


@concept(
    title="B'MOJO",
    source="Zancato et al. 2024, arXiv:2407.06324",
    example=lambda rng: example(_example(rng), rng.normal(size=(2, 8, 3)) / 2, num_heads=2, window=3, memory=2),
    roles=("mixer",),
    rejects=[
        bad(window=0), bad(window=2.5), bad(memory=-1), bad(memory=0.5), bad(num_heads=3), bad(x=np.ones((2, 8, 5))), bad(x=np.ones((2, 0, 3))),
        bad("params.ssm", params=_example(np.random.default_rng(0))._replace(ssm=init_mamba(np.random.default_rng(0), 5, dtype=np.float64))),
        bad("params.output.weight", params=_example(np.random.default_rng(0))._replace(output=Linear(np.ones((4, 3)), None))),
    ],
    step=bmojo_step,
)  # fmt: skip
def bmojo(
    params: Bmojo, x: Float[Array, "*batch positions d_model"], *, num_heads: int, window: int = 16, memory: int = 16,
    scale: float | None = None, rotate: Callable | None = None,
):  # fmt: skip
    """Each position attends to the last window tokens, to memory surprising older ones, and to window fading tokens.

    window is at least 1 position, memory at least 0 tokens. scale multiplies the scores (default 1/sqrt(d_head)).
    rotate(x) -> out, backward turns queries and keys (functools.partial(rope, base=1e5)).
    Returns out, shaped like x, and backward: dout -> Bmojo of gradients, dx.
    Raises ValueError where window or memory are not such whole numbers, or heads and features do not divide.
    """
    _check(num_heads, window, memory, params)
    window = min(window, x.shape[-2])
    fading, ssm_backward = mamba(params.ssm, x)              # (1)
    surprise, _ = innovation(x, fading)                      # (2)
    places, chosen = choose(surprise, window=window, memory=memory)  # (3)

    tokens = np.stack([x, fading])                           # an axis in front: both streams keep their positions
    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, tokens)
    value, value_backward = linear(params.value, tokens)
    query, key, value = (split_heads(part, num_heads) for part in (query, key, value))  # (..., heads, positions, d)  (4)
    if rotate is not None:
        (query, query_unrotate), (key, key_unrotate) = rotate(query), rotate(key)  # (5)
    query_blocks = _to_blocks(query, window)
    (near_key, near_key_backward), (near_value, near_value_backward) = (_near(part, places, window) for part in (key, value))
    sees = _visible(chosen, memory)
    head_blocks, attention_backward = scaled_dot_product_attention(query_blocks, near_key, near_value, mask=sees, scale=scale)  # (8)
    heads = _from_blocks(head_blocks, x.shape[-2])
    out, output_backward = linear(params.output, merge_heads(heads))  # (9)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dhead_blocks = _to_blocks(split_heads(dmerged, num_heads), window)  # (10)
        dquery_blocks, dnear_key, dnear_value, _ = attention_backward(dhead_blocks)  # (11)
        dquery, dkey, dvalue = _from_blocks(dquery_blocks, x.shape[-2]), near_key_backward(dnear_key), near_value_backward(dnear_value)
        if rotate is not None:
            dquery, dkey = query_unrotate(dquery), key_unrotate(dkey)  # (13)
        dparams_query, dx_query = query_backward(merge_heads(dquery))
        dparams_key, dtokens_key = key_backward(merge_heads(dkey))
        dparams_value, dtokens_value = value_backward(merge_heads(dvalue))
        dx_tokens, dfading = dtokens_key + dtokens_value     # (14)
        dssm, dx_fading = ssm_backward(dfading)
        dx = dx_tokens + dx_query + dx_fading                # as a token, as a query, and through the recurrence  (15)
        return Bmojo(dssm, dparams_query, dparams_key, dparams_value, doutput), dx

    return out, backward


def _to_blocks(rows: Array, window: int, *, before: int = 0) -> Array:
    """(..., positions, d) to (..., blocks, window, d): zeros fill up the last block, and as many as ``before`` stand first."""
    *outer, n, d = rows.shape
    first, last = (np.zeros((*outer, size, d), rows.dtype) for size in (before * window, -n % window))
    return np.concatenate([first, rows, last], axis=-2).reshape(*outer, -1, window, d)


def _from_blocks(blocks: Array, positions: int) -> Array:
    return blocks.reshape(*blocks.shape[:-3], -1, blocks.shape[-1])[..., :positions, :]
