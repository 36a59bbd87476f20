"""Hidden-state loss: a narrow student's hidden states, mapped to the teacher's width, shall be the teacher's.

The map is learned along and thrown away afterwards. One map serves all layers. The same loss holds for the embeddings.

Source: Jiao et al. 2019 (TinyBERT), arXiv:1909.10351, Transformer-layer and embedding-layer distillation. Differs from the published
code: positions that are padding do not count, neither in the sum nor in n; the map has a bias only if it is given one (the paper has
none, the code has). Costs the map, d_student d_teacher a position. h are the student's hidden states, t the teacher's.

    projected = h W + b                                      (1)
    apart = projected - t                                    (2)
    out = (1/n) sum of apart^2, over n numbers               (3)
    dprojected = (2/n) dout apart                            (4)
    dW = h^T dprojected, db = sum of dprojected              (5)
    dh = dprojected W^T                                      (6)

with n = d_teacher times the positions that count. Which of the teacher's layers teaches layer m of L_s:

    g(m) = m L_t / L_s, m = 0 .. L_s                         (7)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear, linear
from minitransformers.compression.counted import check_finite, counted_by_mask
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid, procedure


@concept(
    title="Hidden-state loss",
    source="Jiao et al. 2019 (TinyBERT), arXiv:1909.10351, Transformer-layer distillation",
    example=lambda rng: _example(rng),
    rejects=[
        bad(mask=np.zeros((2, 3), bool)), bad(teacher=np.full((2, 3, 5), np.nan)), bad(hidden=np.full((2, 3, 4), np.inf)),
        bad(teacher=np.ones((2, 3, 4))),
    ],
)  # fmt: skip
def hidden_state_loss(
    params: Annotated[Linear, "d_student d_teacher"], hidden: Float[Array, "*batch d_student"], *,
    teacher: Float[Array, "*batch d_teacher"], mask: Bool[Array, "*batch"] | None = None,
) -> tuple[np.floating, Backward]:  # fmt: skip
    """Mean squared difference of the mapped hidden states and the teacher's.

    params is the map, with or without a bias: ``init_linear(rng, d_student, d_teacher, bias=False)``. teacher gets no gradient. mask
    is True where a position counts (None: everywhere); the others may hold anything.
    Returns out, a scalar in squared units of teacher, and backward: dout -> Linear(dweight, dbias), dhidden.
    Raises ValueError where no position counts, or one that does holds NaN or infinity.
    """
    counts = counted_by_mask(hidden.shape[:-1], mask)
    h, t = hidden[counts], teacher[counts]                   # (positions, d_student), (positions, d_teacher)
    check_finite("hidden", h)
    check_finite("teacher", t)
    projected, linear_backward = linear(params, h)           # (1)
    apart = projected - t                                    # (2)
    flat = apart.reshape(-1)
    out = np.vecdot(flat, flat) / flat.size                  # (3)

    def backward(dout):
        dprojected = apart * (dout * (2 / flat.size))        # (4)
        dparams, dh = linear_backward(dprojected)            # (5) (6)
        dhidden = np.zeros_like(hidden)
        dhidden[counts] = dh
        return dparams, dhidden

    return out, backward


@procedure(
    title="Layers matched evenly",
    source="Jiao et al. 2019 (TinyBERT), arXiv:1909.10351, the uniform strategy of layer mapping",
    example=lambda rng: example(3, 6),
    rejects=[bad(student=4), bad(student=7)],
)
def uniform_layers(student: Annotated[int, at_least(1)], teacher: Annotated[int, at_least(1)]) -> Int[Array, "states"]:
    """For each hidden state of the student, numbered 0 (the embeddings) to its number of layers, the number of the teacher's.

    student and teacher are numbers of layers. Both ends meet: embeddings teach embeddings, the last layer the last.
    Raises ValueError where student does not divide teacher.
    """
    if teacher % student:
        raise invalid("student", got=student, wants=f"a number of layers that divides {teacher}")
    return np.arange(student + 1) * (teacher // student)     # (7)


def _example(rng: np.random.Generator):
    params, mask = Linear(rng.normal(size=(4, 5)), rng.normal(size=5)), np.array([[1, 0, 1], [1, 1, 1]], bool)
    return example(params, rng.normal(size=(2, 3, 4)), teacher=rng.normal(size=(2, 3, 5)), mask=mask)
