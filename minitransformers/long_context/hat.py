"""HAT: attention inside segments, and among their first tokens, in turn.

A text is cut into segments of one length. A segment-wise layer reads each for itself; a cross-segment layer reads the first token of
each, and puts what it found back in their place, for the next segment-wise layer to hand out. With n segments of l tokens a pair of
layers costs O(n l^2 + n^2) scores in the place of (n l)^2, and two pairs connect everything.

Source: Chalkidis et al. 2022, arXiv:2210.05529, section 3, and the authors' code (modelling_hat.py) for what the paper leaves open:
each cross-segment layer has a table of segment numbers of its own, which is added to what it reads alone. Differs from the code: no
dropout; padding is hidden exactly, where the code adds a large negative number; the layer is a slot, by default with its norms first. A star is
the backward of what it stands on. For each block in turn, either of whose layers may be missing:

    y = segment layer of x, each segment for itself          (1)
    heads = y at the first token of each segment             (2)
    placed = heads + table, row n at segment n               (3)
    crossed = cross layer of placed, among the segments that hold a token   (4)
    out = y, with crossed at the first token of each segment (5)
    dcrossed = dout at the first tokens                      (6)
    dheads = cross layer*(dcrossed), and dtable_n = the sum over texts of dheads_n   (7)
    dy = dout, with dheads at the first tokens               (8)
    dx = segment layer*(dy)                                  (9)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, trees
from minitransformers.long_context.encoder_block import encoder_block, init_encoder_block
from minitransformers.positional.learned import Learned, init_learned, learned


class HatBlock(NamedTuple):
    """What the layer inside segments learns, that among them, and the table of segment numbers; None for what is not there."""

    segment: Any
    cross: Any
    places: Annotated[Learned, "max_segments d_model"] | None = None


class Hat(NamedTuple):
    """The blocks, in order. Which layers they have is the layout."""

    blocks: list[HatBlock]


@checked
def init_hat(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, layout: list[str], max_segments: Annotated[int, at_least(1)],
    num_heads: Annotated[int, at_least(1)], d_hidden: Annotated[int, at_least(1)] | None = None,
    std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> Hat:  # fmt: skip
    """A block for each entry of the layout: "SC" for both layers, "S" for that inside segments alone, "C" for that among them.

    Interleaved, as in the paper's best: ["SC"] * n. Ad hoc: ["S"] * n + ["C"]. Early or late: ["SC", "S", "S"], ["S", "S", "SC"].
    Raises ValueError for any other entry, and for none.
    """
    if not layout or any(entry not in ("SC", "S", "C") for entry in layout):
        raise invalid("layout", got=layout, wants='a list of "SC", "S" and "C", at least one')

    def layer() -> Any:
        return init_encoder_block(rng, d_model, num_heads=num_heads, d_hidden=d_hidden, std=std, dtype=dtype)

    def block(entry: str) -> HatBlock:
        places = init_learned(rng, d_model, max_positions=max_segments, dtype=dtype) if "C" in entry else None
        return HatBlock(layer() if "S" in entry else None, layer() if "C" in entry else None, places)

    return Hat([block(entry) for entry in layout])


@concept(
    title="Hierarchical attention Transformer (HAT)",
    source="Chalkidis et al. 2022, arXiv:2210.05529, section 3",
    example=lambda rng: _example(rng),
    rejects=[
        bad(length=4), bad("mask", mask=np.array([[1, 1, 0, 1, 1, 0]] * 2, bool)), bad(mask=np.ones((2, 5), bool)),
        bad("params.blocks", params=Hat([])), bad("params.blocks.0", params=Hat([HatBlock(None, None)])),
        bad("params.blocks.0.places", params=Hat([HatBlock(init_encoder_block(np.random.default_rng(0), 4, num_heads=2, dtype=np.float64), None, Learned(np.ones((2, 4))))])),
        bad("params.blocks.0.places", params=Hat([HatBlock(None, init_encoder_block(np.random.default_rng(0), 4, num_heads=2, dtype=np.float64), Learned(np.ones((1, 4))))])),
    ],
)  # fmt: skip
def hat(
    params: Hat, x: Float[Array, "*batch positions d_model"], *, length: Annotated[int, at_least(1)], num_heads: Annotated[int, at_least(1)],
    mask: Bool[Array, "*batch positions"] | None = None, layer: Callable = encoder_block,
) -> tuple[Array, Backward]:  # fmt: skip
    """A text read in segments of ``length`` tokens, which hear of each other through their first tokens alone.

    Positions of tokens are in x already, and begin again with each segment. mask is True where a token is real; a segment without
    a real token is read by no other. What comes out at padding means nothing. layer(own, x, num_heads=, mask=) -> out, backward
    is called with a segment's tokens, (*batch, segments, length, d_model), or with the first ones, (*batch, segments, d_model).
    Returns out, shaped like x, of which out[..., ::length, :] are the segments' vectors; and backward: dout -> Hat of gradients, dx.
    Raises ValueError where length does not divide the positions, a segment's first token is padding and another is not, there
    is no block, a block has no layer, or a table without a cross-segment layer or with too few rows.
    """
    positions, segments = x.shape[-2], x.shape[-2] // length
    if positions % length:
        raise invalid("length", got=length, wants=f"a number of tokens that divides the {positions} positions")
    _check_blocks(params, segments)
    shape = (*x.shape[:-2], segments, length, x.shape[-1])
    inside = among = None
    if mask is not None:
        inside = mask.reshape(shape[:-1])
        among = inside[..., 0]                               # (*batch, segments)
        if (inside.any(-1) > among).any():
            raise invalid("mask", got="a segment whose first token is padding and another is not", wants="its first token to be real")
    settings: dict[str, Any] = {"num_heads": num_heads, "layer": layer}
    cut, backwards = x.reshape(shape), []
    for block in params.blocks:
        cut, block_backward = _block(block, cut, inside, among, **settings)
        backwards.append(block_backward)

    def backward(dout):
        dcut, dblocks = dout.reshape(shape), []
        for block_backward in reversed(backwards):
            dblock, dcut = block_backward(dcut)
            dblocks.append(dblock)
        return Hat(dblocks[::-1]), dcut.reshape(dout.shape)

    return cut.reshape(x.shape), backward


def _block(params: HatBlock, x: Float[Array, "*batch segments length d_model"], inside, among, *, num_heads: int, layer: Callable):
    """One block of the two layers, or of one of them."""
    y = x
    if params.segment is not None:
        y, segment_backward = layer(params.segment, x, num_heads=num_heads, mask=inside)  # (1)
    out = y
    if params.cross is not None:
        heads = y[..., 0, :]                                 # (*batch, segments, d_model)  (2)
        placed = heads
        if params.places is not None:
            placed, places_backward = learned(params.places, heads)  # (3)
        crossed, cross_backward = layer(params.cross, placed, num_heads=num_heads, mask=among)  # (4)
        out = _with_heads(y, crossed)                        # (5)

    def backward(dout):
        dsegment = dcross = dplaces = None
        dy = dout
        if params.cross is not None:
            dcrossed = dout[..., 0, :]                       # (6)
            dcross, dheads = cross_backward(dcrossed)
            if params.places is not None:
                dplaces, dheads = places_backward(dheads)    # (7)
            dy = _with_heads(dout, dheads)                   # what stood there was written over: replaced, not added  (8)
        dx = dy
        if params.segment is not None:
            dsegment, dx = segment_backward(dy)              # (9)
        return HatBlock(dsegment, dcross, dplaces), dx

    return out, backward


def _with_heads(y: Array, heads: Array) -> Array:
    """The segments with other first tokens, as a new array."""
    return np.concatenate([heads[..., None, :], y[..., 1:, :]], axis=-2)


def _check_blocks(params: Hat, segments: int) -> None:
    """Raise ValueError for a stack of nothing, a block without a layer, and a table that serves nothing or ends too early."""
    if not params.blocks:
        raise invalid("params.blocks", got="no block", wants="at least one")
    for i, (segment, cross, places) in enumerate(params.blocks):
        if segment is None and cross is None:
            raise invalid(f"params.blocks.{i}", got="no layer", wants="one inside segments, one among them, or both")
        if places is not None and (cross is None or len(places.table) < segments):
            wants = "None without a cross-segment layer" if cross is None else f"a row for each of {segments} segments"
            raise invalid(f"params.blocks.{i}.places", got=f"{len(places.table)} rows", wants=wants)


def _example(rng: np.random.Generator):
    """Three segments of two tokens, in the second text the last of them empty; three layouts of a block."""
    params = init_hat(rng, 4, layout=["SC", "S", "C"], max_segments=5, num_heads=2, d_hidden=3, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape), params)  # no gain is 1, no bias 0: each of them is tested
    mask = np.array([[1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 0, 0]], bool)
    return example(params, rng.normal(size=(2, 6, 4)), length=2, num_heads=2, mask=mask)
