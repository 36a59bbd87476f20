"""A Mamba that reads a text from both ends, forward and backward: of every byte it says what kind of text it stands in.

Source: Gu and Dao 2023, arXiv:2312.00752 (Mamba); both directions as in Zhu et al. 2024, arXiv:2401.09417 (Vision Mamba), but with one
set of parameters for the two. This is the layout of typeseg (Dallinger 2026), whose published weights it runs. A label for a byte may
rest on what comes after it, so nothing is causal: the convolution sees to both sides, and the same scan runs over the text and over the
text turned round. Differs from mamba: biases in all maps, steps of at least least_step, as wide inside as outside. R turns the order of
positions round; N are layer norms, E the table of bytes, conv the causal convolution, h = width // 2 how far ahead it is to see; a star
is the backward of what it stands on.

    inner, z = N_l(x) W_in + b_in, in two halves             (1)
    u_t = silu(conv(inner followed by h zeros)_{t + h})      (2)
    low, B, C = u W_x + b_x, in three parts                  (3)
    delta = softplus(low W_dt + b_dt) + least_step           (4)
    A = -exp(A_log)                                          (5)
    y = scan(u, delta, A, B, C, D, z) + R scan(R u, R delta, A, R B, R C, D, R z)   (6)
    out = x + y W_out + b_out                                (7)
    dy = dout W_out^T, dW_out, db_out                        (8)
    each of du, ddelta, dA, dB, dC, dD, dz = what scan*(dy) gives + what scan*(R dy) gives, turned round where it has positions   (9)
    dA_log = A dA                                            (10)
    dlow from softplus*(ddelta), du = du + (dlow, dB, dC) W_x^T   (11)
    dinner = conv*(h zeros followed by silu*(du)), without its last h positions   (12)
    dx = dout + N_l*((dinner, dz) W_in^T)                    (13)
    x = E[ids], then every block                             (14)
    logits = N(x) W + b                                      (15)
    dx = N*(dlogits W^T), then every block's backward, dE = dx scattered to the rows ids   (16)
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.basics.causal_convolution import causal_convolution
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.basics.silu import silu
from minitransformers.basics.softplus import softplus
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, trees
from minitransformers.models.weights import Names, plain
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm
from minitransformers.state_space.mamba import Mamba, init_mamba
from minitransformers.state_space.selective_scan_blocks import selective_scan_blocks


class ByteMambaBlock(NamedTuple):
    """A norm, and Mamba's parameters, which both directions share."""

    norm: Annotated[LayerNorm, "d_model"]
    mixer: Mamba


class ByteMamba(NamedTuple):
    """All parameters. The table has a row for each byte of ASCII, one for all others, and one that is not used."""

    embedding: Annotated[Embedding, "vocabulary d_model"]
    blocks: list[ByteMambaBlock]
    norm: Annotated[LayerNorm, "d_model"]
    head: Annotated[Linear, "d_model classes"]


@checked
def init_byte_mamba(
    rng: np.random.Generator, *, vocabulary: Annotated[int, at_least(1)] = 130, d_model: Annotated[int, at_least(1)] = 256,
    num_layers: Annotated[int, at_least(1)] = 6, classes: Annotated[int, at_least(1)] = 35, d_state: Annotated[int, at_least(1)] = 16,
    d_conv: Annotated[int, at_least(1)] = 4, dt_rank: Annotated[int, at_least(1)] | None = None,
    std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> ByteMamba:  # fmt: skip
    """Sizes are those of the published model. Maps and steps start as Mamba's, biases at zero; std as init_mamba has it, and 0.02 for the table."""

    def biased(part: Linear) -> Linear:
        return part._replace(bias=np.zeros(part.weight.shape[1], dtype))

    def block() -> ByteMambaBlock:
        mixer = init_mamba(rng, d_model, d_state=d_state, expand=1, d_conv=d_conv, dt_rank=dt_rank, std=std, dtype=dtype)
        mixer = mixer._replace(in_proj=biased(mixer.in_proj), x_proj=biased(mixer.x_proj), out_proj=biased(mixer.out_proj))
        return ByteMambaBlock(init_layer_norm(rng, d_model, dtype=dtype), mixer)

    return ByteMamba(
        init_embedding(rng, vocabulary, d_model, std=0.02 if std is None else std, dtype=dtype), [block() for _ in range(num_layers)],
        init_layer_norm(rng, d_model, dtype=dtype), init_linear(rng, d_model, classes, std=std, dtype=dtype),
    )  # fmt: skip


def _turned(array: Array, axis: int = -2) -> Array:
    return np.flip(array, axis)


def mamba_both_ways(params: Mamba, x: Array, *, least_step: float = 1e-4, scan: Callable = selective_scan_blocks):
    """Mamba over positions in both orders. Returns out, shaped like x, and backward: dout -> Mamba of gradients, dx."""
    dt_rank, (d_inner, d_state) = params.dt_proj.weight.shape[0], params.A_log.shape
    both, in_backward = linear(params.in_proj, x)
    inner, z = both[..., :d_inner], both[..., d_inner:]      # (1)
    ahead = params.conv.weight.shape[1] // 2
    none = np.zeros((*x.shape[:-2], ahead, d_inner), x.dtype)
    convolved, conv_backward = causal_convolution(params.conv, np.concatenate([inner, none], axis=-2))
    u, silu_backward = silu(convolved[..., ahead:, :])       # (2)
    parts, x_backward = linear(params.x_proj, u)
    low, B, C = np.split(parts, [dt_rank, dt_rank + d_state], axis=-1)  # (3)
    step, dt_backward = linear(params.dt_proj, low)
    positive, softplus_backward = softplus(step)
    delta = positive + x.dtype.type(least_step)              # (4)
    A = -np.exp(params.A_log)                                # (5)
    forth, forth_backward = scan(u, delta, A, B[..., None, :], C[..., None, :], params.D, z, None)
    turned = (_turned(u), _turned(delta), A, _turned(B)[..., None, :], _turned(C)[..., None, :], params.D, _turned(z), None)
    back, back_backward = scan(*turned)
    y = forth[0] + _turned(back[0])                          # (6)
    out, out_backward = linear(params.out_proj, y)           # (7)

    def backward(dout):
        dout_proj, dy = out_backward(dout)                   # (8)
        du, ddelta, dA, dB, dC, dD, dz, _ = forth_backward((dy, None))
        more = back_backward((_turned(dy), None))
        du, ddelta, dz = du + _turned(more[0]), ddelta + _turned(more[1]), dz + _turned(more[6])
        dB, dC = dB + _turned(more[3], -3), dC + _turned(more[4], -3)
        dA, dD = dA + more[2], dD + more[5]                  # both directions use all: two gradients each  (9)
        dA_log = A * dA                                      # (10)
        ddt_proj, dlow = dt_backward(softplus_backward(ddelta))
        dx_proj, dthrough = x_backward(np.concatenate([dlow, dB[..., 0, :], dC[..., 0, :]], axis=-1))
        dconvolved = np.concatenate([none, silu_backward(du + dthrough)], axis=-2)  # (11)
        dconv, dinner, _ = conv_backward(dconvolved)
        dinner = dinner[..., : x.shape[-2], :]               # (12)
        din_proj, dx = in_backward(np.concatenate([dinner, dz], axis=-1))
        return Mamba(din_proj, dconv, dx_proj, ddt_proj, dA_log, dD, dout_proj), dx

    return out, backward


@concept(
    title="Mamba over bytes, in both directions",
    source="Gu and Dao 2023, arXiv:2312.00752; Zhu et al. 2024, arXiv:2401.09417",
    example=lambda rng: _example(rng),
    large=lambda rng: _example(rng, scale=1 / 100),             # small: many factors meet in one output
    rejects=[bad("ids", ids=np.array([[0, 5]]))],
)
def byte_mamba(
    params: ByteMamba, *, ids: Int[Array, "*batch positions"], least_step: Annotated[float, at_least(0)] = 1e-4,
    eps: Annotated[float, at_least(0)] = 1e-6, scan: Callable = selective_scan_blocks,
) -> tuple[Array, Backward]:  # fmt: skip
    """Scores of every class for every byte, each resting on the whole text.

    least_step is added to the steps of the scan, eps is that of the norms. scan is the recurrence, as in mamba.
    Texts of a batch are of one length: padding would be read, from the far end.
    Returns logits (*batch, positions, classes), and backward: dlogits -> ByteMamba of gradients.
    Raises ValueError where ids lie outside the table.
    """
    norm = partial(layer_norm, eps=eps)
    block = partial(residual, part=partial(chain, parts=(norm, partial(mamba_both_ways, least_step=least_step, scan=scan))))
    x, embedding_backward = embedding(params.embedding, ids=ids)
    backwards = []
    for one in params.blocks:
        x, block_backward = block(tuple(one), x)             # (14)
        backwards.append(block_backward)
    logits, top_backward = chain((params.norm, params.head), x, parts=(norm, linear))  # (15)

    def backward(dlogits):
        (dnorm, dhead), dx = top_backward(dlogits)
        dblocks = []
        for block_backward in reversed(backwards):
            dblock, dx = block_backward(dx)                  # (13)
            dblocks.append(ByteMambaBlock(*dblock))
        return ByteMamba(embedding_backward(dx), dblocks[::-1], dnorm, dhead)  # (16)

    return logits, backward


# The names in typeseg's file; Flax keeps a weight as (d_in, d_out), as we do, and taps as (width, 1, channels).
_BLOCK = "CheckpointMambaBlock1D_*__"
_MAPS = {"in_proj": "Dense_0", "x_proj": "Dense_1", "dt_proj": "Dense_2", "out_proj": "Dense_3"}
NAMES = Names(
    {
        "embedding.weight": plain("Embed_0__embedding"),
        "norm.gain": plain("LayerNorm_0__scale"),
        "norm.bias": plain("LayerNorm_0__bias"),
        "head.weight": plain("Dense_0__kernel"),
        "head.bias": plain("Dense_0__bias"),
        "blocks.*.norm.gain": plain(f"{_BLOCK}LayerNorm_0__scale"),
        "blocks.*.norm.bias": plain(f"{_BLOCK}LayerNorm_0__bias"),
        "blocks.*.mixer.conv.weight": plain(f"{_BLOCK}Conv_0__kernel"),
        "blocks.*.mixer.conv.bias": plain(f"{_BLOCK}Conv_0__bias"),
        "blocks.*.mixer.A_log": plain(f"{_BLOCK}A_log"),
        "blocks.*.mixer.D": plain(f"{_BLOCK}D"),
        **{f"blocks.*.mixer.{own}.weight": plain(f"{_BLOCK}{theirs}__kernel") for own, theirs in _MAPS.items()},
        **{f"blocks.*.mixer.{own}.bias": plain(f"{_BLOCK}{theirs}__bias") for own, theirs in _MAPS.items()},
    }
)


def load_byte_mamba(source: Mapping[str, Array] | str | Path) -> ByteMamba:
    """The parameters of typeseg's Mamba, from a dict of arrays or its .npz file; the dtype stays.

    Raises ValueError for a file that is no such archive, and for missing, unexpected or mis-shaped weights, naming them.
    """
    if isinstance(source, Mapping):
        arrays = dict(source)
    else:
        try:
            with open(source, "rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{source}: cannot be read as an .npz archive: {str(error).partition(chr(10))[0]}") from None
    kernels = {name: array for name, array in arrays.items() if name.endswith("Conv_0__kernel") and array.ndim == 3 and array.shape[1] == 1}
    arrays |= {name: np.ascontiguousarray(array[:, 0].T) for name, array in kernels.items()}
    num_layers = NAMES.count(_BLOCK, arrays)
    skeleton = init_byte_mamba(np.random.default_rng(0), vocabulary=1, d_model=1, num_layers=num_layers, classes=1, d_state=1, d_conv=1)
    return NAMES.tree(skeleton, arrays)


def byte_mamba_weights(params: ByteMamba) -> dict[str, Array]:
    """The same parameters (or their gradients) under the names of typeseg's file, as Flax keeps them."""
    arrays = NAMES.arrays(params)
    taps = {name: array for name, array in arrays.items() if name.endswith("Conv_0__kernel")}
    return arrays | {name: np.ascontiguousarray(array.T)[:, None] for name, array in taps.items()}


def _example(rng: np.random.Generator, scale: float = 1):
    sizes: dict[str, Any] = {"vocabulary": 5, "d_model": 4, "num_layers": 2, "classes": 2, "d_state": 3, "d_conv": 4, "dt_rank": 1}
    params = init_byte_mamba(rng, **sizes, std=0.5, dtype=np.float64)
    rates = [one._replace(mixer=one.mixer._replace(A_log=rng.uniform(0, 0.25, size=(4, 3)))) for one in params.blocks]
    params = params._replace(blocks=rates)
    params = trees.map(lambda leaf: scale * (leaf + rng.normal(0, 0.2, leaf.shape)), params)  # no gain is 1, no bias 0: each of them is tested
    return example(params, ids=rng.integers(5, size=(2, 6)), scan=partial(selective_scan_blocks, chunk=2))
