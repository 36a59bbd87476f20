"""B'MOJO in blocks, and its step: what is computed and kept grows with positions (window + memory), and not with their square.

The equations are those of bmojo, and so are the numbers on the lines. What differs:

    (3)     choose in the place of a sort of all positions: the memory at the start of each block, and who has left since
    (6)     positions in blocks of ``window``; near[b] is all that a query of block b can see: the memory at its start, the
            tokens of blocks b - 1 and b, the fading tokens of blocks b - 2 and b - 1. A mask says what each one sees of it
    (7)     the core for all blocks at once, over memory + 4 window rows each
    (10)    a row that stands near several blocks gets the sum of its gradients there

bmojo_step reads a few positions at a time and keeps 3 window + memory rows a head, however long the text is. Source: Zancato et
al. 2024, arXiv:2407.06324; blocks: Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.heads import merge_heads, split_heads
from minitransformers.attention.prepare import unprepared
from minitransformers.basics.embedding import Embedding, embedding
from minitransformers.basics.linear import linear
from minitransformers.foundation import Backward, at_least, bad, concept, trusted
from minitransformers.foundation.signature import check_arguments
from minitransformers.hybrids.bmojo import Bmojo, check_parts, example_call, init_bmojo, large_call
from minitransformers.hybrids.eidetic_memory import Eidetic, Memory, Predictor, Window, admit, choose, innovation
from minitransformers.state_space.mamba import MambaState, mamba, mamba_step


class BmojoState(NamedTuple):
    """What is kept of the past, in rows of a key and a value side by side.

    window holds the last window tokens at most, fading twice as many (the younger half waits until its tokens have left
    the window), eidetic at most memory, None for none.
    """

    ssm: MambaState | None
    predictor: Predictor | None
    length: int
    window: Float[Array, "*batch heads recent d_row"]
    innovation: Float[Array, "*batch recent"]
    fading: Float[Array, "*batch heads faded d_row"]
    eidetic: Eidetic | None


init_bmojo_blocks = init_bmojo


@trusted
def bmojo_step(
    params: Bmojo, x: Float[Array, "*batch new d_model"], state: BmojoState | None, *, num_heads: int, window: int = 16, memory: int = 16,
    prepare: Callable = unprepared, core: Callable = softmax_attention,
) -> tuple[Array, BmojoState]:  # fmt: skip
    """The outputs at a few new positions, given those before; ``state`` is None at the start.

    Returns out, shaped like x, and the state after them, which never grows beyond 3 window + memory rows a head; nothing
    is written to. Forward only.
    """
    check_arguments(bmojo_blocks, (), {"num_heads": num_heads, "window": window, "memory": memory})
    check_parts(params, num_heads)
    *batch, new, _ = x.shape
    d_head = params.key.weight.shape[1] // num_heads
    if state is None:
        no_rows = np.zeros((*batch, num_heads, 0, d_head + params.value.weight.shape[1] // num_heads), x.dtype)
        state = BmojoState(None, None, 0, no_rows, np.zeros((*batch, 0), x.dtype), no_rows, None)
    faded, ssm = mamba_step(params.ssm, x, state.ssm)        # (1)
    surprise, predictor = innovation(x, faded, state.predictor)  # (2)
    streams = np.stack([x, faded])
    query, key, value = (split_heads(linear(p, t)[0], num_heads) for p, t in zip(params[1:4], (x, streams, streams), strict=True))  # (4)
    query, key = prepare(params.prepare, query, key, positions=np.arange(state.length, state.length + new))[0]  # (5)
    own_rows, faded_rows = np.concatenate([key, value], axis=-1)
    recent, fading, waiting, kept = state.window, state.fading, state.innovation, state.eidetic
    heads = []
    for t in range(new):
        recent = np.concatenate([recent, own_rows[..., t : t + 1, :]], axis=-2)
        fading = np.concatenate([fading, faded_rows[..., t : t + 1, :]], axis=-2)[..., -2 * window :, :]
        waiting = np.concatenate([waiting, surprise[..., t : t + 1]], axis=-1)
        if recent.shape[-2] > window:                        # the oldest leaves the window: is it kept?
            kept = admit(kept, recent[..., :1, :], waiting[..., 0], state.length + t - window, memory=memory)  # (3)
            recent, waiting = recent[..., 1:, :], waiting[..., 1:]
        seen = [recent, fading[..., :-window, :]] if kept is None else [recent, fading[..., :-window, :], kept.rows]
        rows = np.concatenate(seen, axis=-2)                 # (6)
        heads.append(core(params.core, query[..., t : t + 1, :], rows[..., :d_head], rows[..., d_head:])[0])  # (7)
    out, _ = linear(params.output, merge_heads(np.concatenate(heads, axis=-2)))  # (8)
    return out, BmojoState(ssm, predictor, state.length + new, recent, waiting, fading, kept)


@concept(
    title="B'MOJO in blocks",
    source="Zancato et al. 2024, arXiv:2407.06324; blocks: Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1",
    example=lambda rng: example_call(rng),
    large=lambda rng: large_call(rng),
    roles=("mixer",),
    rejects=[bad(num_heads=3)],
    step=bmojo_step,
    form_of="bmojo",
)
def bmojo_blocks(
    params: Bmojo, x: Float[Array, "*batch positions d_model"], *, num_heads: Annotated[int, at_least(1)], window: Window = 16,
    memory: Memory = 16, prepare: Callable = unprepared, core: Callable = softmax_attention,
) -> tuple[Array, Backward]:  # fmt: skip
    """What bmojo gives, at a cost that grows with positions (window + memory); arguments, results and errors are its own."""
    check_parts(params, num_heads)
    positions = x.shape[-2]
    window = min(window, positions)
    fading, ssm_backward = mamba(params.ssm, x)              # (1)
    surprise, _ = innovation(x, fading)                      # (2)
    places, chosen = choose(surprise, window=window, memory=memory)  # (3)

    streams = np.stack([x, fading])
    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, streams)
    value, value_backward = linear(params.value, streams)
    query, key, value = (split_heads(part, num_heads) for part in (query, key, value))  # (4)
    (query, key), prepare_backward = prepare(params.prepare, query, key, positions=None)  # (5)
    near_key, near_key_backward = _near(key, places, window)
    near_value, near_value_backward = _near(value, places, window)
    sees = _visible(chosen, memory)                          # (6)
    head_blocks, core_backward = core(params.core, _to_blocks(query, window), near_key, near_value, mask=sees)  # (7)
    out, output_backward = linear(params.output, merge_heads(_from_blocks(head_blocks, positions)))  # (8)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dhead_blocks = _to_blocks(split_heads(dmerged, num_heads), window)  # (9)
        dcore, dquery_blocks, dnear_key, dnear_value, _ = core_backward(dhead_blocks)
        dquery, dkey, dvalue = _from_blocks(dquery_blocks, positions), near_key_backward(dnear_key), near_value_backward(dnear_value)  # (10)
        dprepare, dquery, dkey = prepare_backward((dquery, dkey))  # (11)
        dparams_query, dx_query = query_backward(merge_heads(dquery))
        dparams_key, dstreams_key = key_backward(merge_heads(dkey))
        dparams_value, dstreams_value = value_backward(merge_heads(dvalue))
        dx_tokens, dfading = dstreams_key + dstreams_value   # (12)
        dssm, dx_fading = ssm_backward(dfading)
        dx = dx_tokens + dx_query + dx_fading                # (13)
        return Bmojo(dssm, dparams_query, dparams_key, dparams_value, doutput, dprepare, dcore), dx

    return out, backward


def _near(stream: Float[Array, "two *batch heads positions d"], places: Array, window: int):
    """The rows that some query of a block sees, (blocks, *batch, heads, memory + 4 window, d). Backward: dnear -> dstream.

    stream holds the tokens, then the fading tokens; places are those of choose.
    """
    *outer, positions, d = stream.shape[1:]
    own, faded = _to_blocks(stream[0], window), _to_blocks(stream[1], window)
    memory = places.shape[-1]
    kept, before, here, older, old = _parts(memory, window)
    near = np.zeros((*own.shape[:-2], memory + 4 * window, d), stream.dtype)
    near[1:, ..., before, :] = own[:-1]
    near[..., here, :] = own
    near[2:, ..., older, :] = faded[:-2]
    near[1:, ..., old, :] = faded[:-1]
    if memory:                                               # tokens are a table, and the memory looks up rows of it
        starts = positions * np.arange(np.prod(outer, dtype=int)).reshape(*outer, 1, 1)
        rows = np.maximum(places, 0)                         # any row, where the memory is not full yet: nobody sees it
        ids = np.moveaxis(starts + rows[..., None, :, :], -2, 0)
        near[..., kept, :], lookup_backward = embedding(Embedding(stream[0].reshape(-1, d)), ids=ids)

    def backward(dnear):
        dblocks = np.zeros((2, *outer, len(own), window, d), stream.dtype)
        down, dfaded = np.moveaxis(dblocks, -3, 1)
        down[...] = dnear[..., here, :]
        down[:-1] += dnear[1:, ..., before, :]
        dfaded[:-1] = dnear[1:, ..., old, :]
        dfaded[:-2] += dnear[2:, ..., older, :]
        dstream = dblocks.reshape(2, *outer, -1, d)[..., :positions, :]
        if memory:
            dstream[0] += lookup_backward(dnear[..., kept, :]).weight.reshape(stream[0].shape)  # one look-up a block: they add  (10)
        return dstream

    return near, backward


def _visible(chosen: Bool[Array, "*batch blocks window both"], memory: int) -> Bool[Array, "blocks *batch 1 window near"]:
    """Which rows of ``near`` each query of a block sees."""
    *_, blocks, window, _ = chosen.shape
    block = np.arange(blocks)[:, None, None]
    up_to = np.tri(window, dtype=bool)                       # in a block: up to the place that the query has in its own
    kept, before, here, older, old = _parts(memory, window)
    sees = np.empty((*chosen.shape[:-1], memory + 4 * window), bool)
    sees[..., kept] = chosen[..., kept]
    sees[..., before] = chosen[..., before] | (~up_to & (block >= 1))  # chosen, or in the window still
    sees[..., here] = up_to
    sees[..., older] = ~up_to & (block >= 2)
    sees[..., old] = up_to & (block >= 1)                    # (6)
    return np.moveaxis(sees, -3, 0)[..., None, :, :]         # the same for every head


def _parts(memory: int, window: int) -> list[slice]:
    """Where in ``near`` the memory, two blocks of tokens and two of fading tokens stand."""
    return [slice(0, memory), *(slice(memory + k * window, memory + (k + 1) * window) for k in range(4))]


def _to_blocks(rows: Float[Array, "*outer positions d"], window: int) -> Float[Array, "blocks *outer window d"]:
    """Blocks in front, so that the core sees its heads where they always stand; zeros fill up the last one."""
    *outer, positions, d = rows.shape
    padded = np.concatenate([rows, np.zeros((*outer, -positions % window, d), rows.dtype)], axis=-2)
    return np.moveaxis(padded.reshape(*outer, -1, window, d), -3, 0)


def _from_blocks(blocks: Float[Array, "blocks *outer window d"], positions: int) -> Float[Array, "*outer positions d"]:
    rows = np.moveaxis(blocks, 0, -3)
    return rows.reshape(*rows.shape[:-3], -1, rows.shape[-1])[..., :positions, :]
