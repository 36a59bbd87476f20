"""Hyper-adapters (HyperFormer++): one network writes the adapters of every task, every layer and every place in a layer.

An adapter for each task shares nothing between tasks, and one for all tasks tells none apart. Here a task is a short vector, and
so are a layer and a place; from the three a small network makes a vector e, and one linear map for each of an adapter's arrays
makes that array of e. What tasks, layers and places have in common is in that network, which has as many numbers for a thousand
tasks as for one. Source: Karimi Mahabadi, Ruder, Dehghani and Henderson 2021, arXiv:2106.04489, section 2 and figure 2.
The generated gain is about zero at first, as in the authors' code, and so is all that an adapter adds. z is the row of a table,
theta one of the six arrays, G and c its generator; LN_e is the norm of e, with a gain and a bias of its own.

    z = (z_task, z_layer, z_place), side by side             (1)
    a = z W_1 + b_1                                          (2)
    e = LN_e(relu(a) W_2 + b_2)                              (3)
    theta = e G_theta + c_theta, in the shape of theta       (4)
    hidden = x W_down + b_down                               (5)
    added = phi(hidden) W_up + b_up                          (6)
    out = x + LN(added), with gain and bias of (4)           (7)
    dadded, dgain, dbias = LN*(dout)                         (8)
    dhidden = dadded W_up^T phi'(hidden), and dW_up, db_up   (9)
    dx = dout + dhidden W_down^T, and dW_down, db_down       (10)
    dG_theta = e^T dtheta, dc_theta = dtheta, both summed over uses   (11)
    de = sum over theta of dtheta G_theta^T                  (12)
    da = (LN_e*(de) W_2^T) where a > 0, and dW_2, db_2       (13)
    dz = da W_1^T, and dW_1, db_1                            (14)
    dz_task, dz_layer, dz_place = the parts of dz, each added to its row   (15)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.relu import relu
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, slot, trees
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm
from minitransformers.peft.bottleneck_adapter import BottleneckAdapter, adapter_example, bottleneck


class HyperAdapter(NamedTuple):
    """A written adapter: the two maps, and the norm behind them."""

    bottleneck: BottleneckAdapter
    norm: LayerNorm


class HyperAdapters(NamedTuple):
    """The tables of tasks, layers and places, the network from a row of each to e, and a generator for each array of an adapter."""

    tasks: Annotated[Embedding, "tasks d_row"]
    layers: Annotated[Embedding, "layers d_row"]
    places: Annotated[Embedding, "places d_row"]
    inside: Annotated[Linear, "d_rows d_hidden"]
    outside: Annotated[Linear, "d_hidden d_code"]
    norm: Annotated[LayerNorm, "d_code"]
    down_weight: Annotated[Linear, "d_code d_maps"]
    down_bias: Annotated[Linear, "d_code d_bottleneck"]
    up_weight: Annotated[Linear, "d_code d_maps"]
    up_bias: Annotated[Linear, "d_code d_model"]
    gain: Annotated[Linear, "d_code d_model"]
    bias: Annotated[Linear, "d_code d_model"]


Size = Annotated[int, at_least(1)]


@checked
def init_hyper_adapters(
    rng: np.random.Generator, d_model: Size, *, d_bottleneck: Size, num_tasks: Size, num_layers: Size, num_places: Size = 2, d_row: Size = 64,
    d_hidden: Size = 128, d_code: Annotated[int, at_least(2)] = 64, std: Annotated[float, at_least(0)] = 0.01, dtype: type = np.float32,
) -> HyperAdapters:  # fmt: skip
    """Tables of normal rows of deviation 1; normal weights of deviation ``std`` and zero biases in all maps.

    The map that writes the gain is no exception: a written gain is about zero, and the adapter adds little. d_row is the
    width of a row of the tables, d_code that of e.
    """
    def table(rows: int) -> Embedding:
        return init_embedding(rng, rows, d_row, std=1.0, dtype=dtype)

    def generator(d_out: int) -> Linear:
        return init_linear(rng, d_code, d_out, std=std, dtype=dtype)

    return HyperAdapters(
        table(num_tasks), table(num_layers), table(num_places),
        init_linear(rng, 3 * d_row, d_hidden, std=std, dtype=dtype), init_linear(rng, d_hidden, d_code, std=std, dtype=dtype),
        init_layer_norm(rng, d_code, dtype=dtype), generator(d_model * d_bottleneck), generator(d_bottleneck),
        generator(d_bottleneck * d_model), generator(d_model), generator(d_model), generator(d_model),
    )  # fmt: skip


@concept(
    title="Hyper-adapters (HyperFormer++)",
    source="Karimi Mahabadi et al. 2021, arXiv:2106.04489, section 2",
    example=lambda rng: example(_params(rng), task=2),
    rejects=[bad(task=3), bad(task=-1)],
)
def hyper_adapters(params: HyperAdapters, *, task: int) -> tuple[tuple[tuple[HyperAdapter, ...], ...], Backward]:
    """The adapters of a task for every layer and every place in it: ``written[layer][place]``.

    task counts from 0, as the rows of params.tasks. What is written goes into the slots of a model, behind its sub-layers
    (adapted, with hyper_adapter).
    Returns written, and backward: the gradients of all that is written, in its form -> HyperAdapters of gradients.
    Raises ValueError for a task that params do not know, and for generators that do not fit one another.
    """
    num_layers, num_places = len(params.layers.weight), len(params.places.weight)
    layers, places = np.divmod(np.arange(num_layers * num_places), num_places)
    flat, flat_backward = _write(params, np.full(layers.size, _known("task", task, params.tasks)), layers, places)
    written = tuple(flat[start : start + num_places] for start in range(0, len(flat), num_places))

    def backward(dwritten):
        return flat_backward([dplace for dlayer in dwritten for dplace in dlayer])

    return written, backward


@concept(
    title="Hyper-adapters, one of them",
    source="Karimi Mahabadi et al. 2021, arXiv:2106.04489, section 2",
    example=lambda rng: example(_params(rng), task=2, layer=0, place=1),
    form_of="hyper_adapters",
    rejects=[bad(task=3), bad(layer=2), bad(place=2), bad(layer=-1)],
)
def hyper_adapter_weights(params: HyperAdapters, *, task: int, layer: int, place: int) -> tuple[HyperAdapter, Backward]:
    """The adapter of a task at one place of one layer: rows of the three tables, from 0. Place 0 is behind attention, 1 behind the rest.

    Returns written, and backward: HyperAdapter of gradients -> HyperAdapters of gradients.
    Raises ValueError for a task, a layer or a place that params do not know, and for generators that do not fit one another.
    """
    ids = (_known("task", task, params.tasks), _known("layer", layer, params.layers), _known("place", place, params.places))
    (written,), backward = _write(params, *(np.array([i]) for i in ids))
    return written, lambda dwritten: backward([dwritten])


@concept(
    title="Hyper-adapters, a written adapter at work",
    source="Karimi Mahabadi et al. 2021, arXiv:2106.04489, section 2, eq. 1",
    example=lambda rng: example(HyperAdapter(adapter_example(rng, 5, 3), LayerNorm(*rng.normal(size=(2, 5)))), rng.normal(size=(2, 4, 5))),
    form_of="hyper_adapters",
)
def hyper_adapter(params: HyperAdapter, x: Float[Array, "... d_model"], *, activation: Callable = slot(gelu)) -> tuple[Array, Backward]:
    """x plus the layer norm of what the bottleneck makes of it.

    activation is bottleneck_adapter's. Returns out, shaped like x, and backward: dout -> HyperAdapter of gradients, dx.
    Raises ValueError when the shapes do not fit.
    """
    added, through_backward = bottleneck(params.bottleneck, x, activation=activation)  # (5) (6)
    normed, norm_backward = layer_norm(params.norm, added)
    out = x + normed                                         # (7)

    def backward(dout):
        dnorm, dadded = norm_backward(dout)                  # (8)
        dbottleneck, dthrough = through_backward(dadded)     # (9)
        return HyperAdapter(dbottleneck, dnorm), dout + dthrough  # (10)

    return out, backward


def _write(params: HyperAdapters, tasks: Array, layers: Array, places: Array) -> tuple[tuple[HyperAdapter, ...], Callable]:
    """An adapter for each task, layer and place, all at once, and backward: a sequence of their gradients -> HyperAdapters."""
    d_model, d_bottleneck = _widths(params)
    looked_up = [embedding(table, ids=ids) for table, ids in zip(params[:3], (tasks, layers, places), strict=True)]
    z = np.concatenate([rows for rows, _ in looked_up], axis=-1)  # (uses, 3 d_row)  (1)
    a, inside_backward = linear(params.inside, z)            # (2)
    active, relu_backward = relu(a)
    raw, outside_backward = linear(params.outside, active)
    code, norm_backward = layer_norm(params.norm, raw, eps=_EPS)  # (uses, d_code)  (3)
    generated = [linear(generator, code) for generator in params[6:]]  # each (uses, numbers of an array)  (4)
    down, up = (d_model, d_bottleneck), (d_bottleneck, d_model)
    written = tuple(
        HyperAdapter(BottleneckAdapter(Linear(w.reshape(down), b), Linear(v.reshape(up), c)), LayerNorm(gain, bias))
        for w, b, v, c, gain, bias in zip(*(made for made, _ in generated), strict=True)
    )

    def backward(dwritten):
        arrays = [[leaf.reshape(-1) for _, leaf in trees.leaves(dadapter)] for dadapter in dwritten]
        dgenerators, dcode = [], np.zeros_like(code)
        for (_, generator_backward), dtheta in zip(generated, zip(*arrays, strict=True), strict=True):
            dgenerator, dcode_here = generator_backward(np.stack(dtheta))
            dgenerators.append(dgenerator)                   # a sum over uses: they are its positions  (11)
            dcode += dcode_here                              # e is read by every generator: six gradients  (12)
        dnorm, draw = norm_backward(dcode)
        doutside, dactive = outside_backward(draw)
        da = relu_backward(dactive)                          # (13)
        dinside, dz = inside_backward(da)                    # (14)
        dtables = [lookup_backward(dpart) for (_, lookup_backward), dpart in zip(looked_up, np.split(dz, 3, axis=-1), strict=True)]  # (15)
        return HyperAdapters._make([*dtables, dinside, doutside, dnorm, *dgenerators])

    return written, backward


_EPS = 1e-6  # the authors', where e is normed: at the start it is small


def _known(name: str, given: int, table: Embedding) -> int:
    """The id. Raises ValueError that names it where the table has no such row: a negative one would count from the end."""
    if not 0 <= given < len(table.weight):
        raise invalid(name, got=given, wants=f"0 to {len(table.weight) - 1}, the {name}s that params know")
    return given


def _widths(params: HyperAdapters) -> tuple[int, int]:
    """d_model and d_bottleneck. Raises ValueError where a map has not the width that others ask for."""
    d_model, d_bottleneck = (part.weight.shape[1] for part in (params.up_bias, params.down_bias))
    for name in ("down_weight", "up_weight"):
        if (got := getattr(params, name).weight.shape[1]) != d_model * d_bottleneck:
            wants = f"{d_model} times {d_bottleneck}, as up_bias and down_bias are wide"
            raise invalid(f"params.{name}.weight", got=f"{got} columns", wants=wants)
    if (got := len(params.inside.weight)) != 3 * (d_row := params.tasks.weight.shape[1]):
        raise invalid("params.inside.weight", got=f"{got} rows", wants=f"{3 * d_row}: a row of each of the three tables")
    return d_model, d_bottleneck


def _params(rng: np.random.Generator) -> HyperAdapters:
    sizes: dict[str, Any] = {"d_bottleneck": 2, "num_tasks": 3, "num_layers": 2, "d_row": 4, "d_hidden": 5, "d_code": 8}
    params = init_hyper_adapters(rng, 3, **sizes, std=0.5, dtype=np.float64)
    return trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)
