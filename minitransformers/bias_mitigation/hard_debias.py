"""Hard debias: take a direction out of the words that should be neutral, and set the others evenly to both sides of it.

Neutral words lose their part in the bias subspace. The members of an equality set (two words that differ only in what the subspace
stands for) get one common part outside of it, and inside of it parts of one size: then every neutral word is equally similar to
all of them. What else neutral words have in common because of their former part stays.

Source: Bolukbasi et al. 2016, arXiv:1607.06520, section 6. Differs from the authors' code: a set may have any number of members and
the subspace any dimension k; their code sets a pair to plus and minus one direction, which for k = 1 is the same. Costs two products
with the thin basis; the matrix basis basis^T is never made. basis has orthonormal columns, words have length 1.

    kept(x) = x - (x basis) basis^T                          (1)
    dx = dout - (dout basis) basis^T                         (2)
    neutral word = kept(w) / |kept(w)|                       (3)
    mean = mean of the set's words, common = kept(mean)      (4)
    side = (w - mean) basis                                  (5)
    equal word = common + sqrt(1 - |common|^2) side basis^T / |side|   (6)
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, finite, invalid, procedure

_ROWS = Annotated[Float[Array, "words d_model"], finite]
_BASIS = Annotated[Float[Array, "d_model k"], finite]


def check_basis(basis: Array) -> None:
    """Raise ValueError where the columns are not orthonormal: a rank too low among them."""
    error = np.abs(basis.T @ basis - np.eye(basis.shape[1])).max()
    if not error <= np.sqrt(np.finfo(basis.dtype).eps):
        raise invalid("basis", got=f"columns whose products are off by {error:.2g}", wants="orthonormal columns")


def check_unit_rows(name: str, vectors: Array) -> None:
    """Raise ValueError where a row has not length 1."""
    off = np.abs(np.linalg.norm(vectors, axis=-1) - 1)
    if not np.max(off) <= np.sqrt(np.finfo(vectors.dtype).eps):
        raise invalid(name, got=f"a length off by {np.max(off):.2g} in row {int(np.argmax(off))}", wants="rows of length 1")


def _basis(rng: np.random.Generator) -> Array:
    return rng.choice([-1.0, 1.0], size=(5, 1)) / np.sqrt(5)


def _words(rng: np.random.Generator, *shape: int) -> Array:
    words = rng.normal(size=(*shape, 5))
    return words / np.linalg.norm(words, axis=-1, keepdims=True)


@concept(
    title="Remove a subspace",
    source="Bolukbasi et al. 2016, arXiv:1607.06520, section 6",
    example=lambda rng: example(rng.normal(size=(2, 3, 5)), basis=_basis(rng)),
    rejects=[bad(basis=np.ones((5, 2))), bad(basis=np.eye(5, 2)[:, [0, 0]]), bad(basis=np.zeros((5, 1))), bad(basis=2 * np.eye(5, 1))],
    form_of="hard_debias",
)
def remove_subspace(x: Float[Array, "... d_model"], *, basis: Float[Array, "d_model k"]) -> tuple[Array, Backward]:
    """x without its part in the subspace that the orthonormal columns of basis span; basis is frozen.

    Returns out, shaped like x, and backward: dout -> dx. Raises ValueError where the columns are not orthonormal.
    """
    check_basis(basis)
    out = x - (x @ basis) @ basis.T                          # (1)

    def backward(dout):
        return dout - (dout @ basis) @ basis.T               # a projection onto a subspace is its own transpose  (2)

    return out, backward


@procedure(
    title="Neutralize",
    source="Bolukbasi et al. 2016, arXiv:1607.06520, section 6",
    example=lambda rng: example(_words(rng, 4), basis=_basis(rng)),
    rejects=[bad(words=np.full((4, 5), 0.5)), bad(basis=np.ones((5, 2))), bad("words", words=np.eye(4, 5), basis=np.eye(5, 2))],
)
def neutralize(words: _ROWS, *, basis: _BASIS) -> Float[Array, "words d_model"]:
    """Words of length 1 without their part in the subspace, at length 1 again.

    Raises ValueError for rows of another length, columns that are not orthonormal, and a word that lies in the subspace.
    """
    check_unit_rows("words", words)
    kept, _ = remove_subspace(words, basis=basis)
    length = np.linalg.norm(kept, axis=1, keepdims=True)
    if not np.min(length) > _nothing(words):
        raise invalid("words", got=f"row {int(np.argmin(length))}, which lies in the subspace", wants="words with another part as well")
    return kept / length                                     # (3)


@procedure(
    title="Equalize",
    source="Bolukbasi et al. 2016, arXiv:1607.06520, section 6",
    example=lambda rng: example(_words(rng, 2, 3), basis=_basis(rng)),
    rejects=[bad(members=np.full((3, 5), 0.5)), bad(basis=np.ones((5, 2))), bad("members", members=np.eye(3, 5, 1), basis=np.eye(5, 1)), bad(members=np.eye(2, 5)[:, None])],
)  # fmt: skip
def equalize(members: Annotated[Float[Array, "*sets members d_model"], finite], *, basis: _BASIS) -> Float[Array, "*sets members d_model"]:
    """The words of an equality set with one part outside the subspace, and parts of one size in it, at length 1.

    Leading axes are sets, each of as many members.
    Raises ValueError for rows of another length, columns that are not orthonormal, and a member whose part in the subspace is the
    mean of all: to which side it belongs is not known. A set of one is such.
    """
    check_unit_rows("members", members)
    mean = members.mean(axis=-2, keepdims=True)
    common, _ = remove_subspace(mean, basis=basis)           # (4)
    side = (members - mean) @ basis                          # (..., members, k)  (5)
    length = np.linalg.norm(side, axis=-1, keepdims=True)
    if not np.min(length) > _nothing(members):
        raise invalid("members", got=f"row {int(np.argmin(length))}, whose part in the subspace is the mean one", wants="members that differ in it")
    room = np.maximum(1 - np.sum(common**2, axis=-1, keepdims=True), 0)  # a mean of vectors of length 1 is no longer, but for rounding
    return common + np.sqrt(room) * (side / length) @ basis.T  # (6)


@procedure(
    title="Hard debias",
    source="Bolukbasi et al. 2016, arXiv:1607.06520, section 6",
    example=lambda rng: example(_words(rng, 7), basis=_basis(rng), neutral=np.array([4])),
    rejects=[
        bad(neutral=np.array([0, 7])), bad(neutral=np.array([-1, 0])), bad("equal.0", equal=[np.array([4, 2])]), bad("equal.1", equal=[np.array([1, 2]), np.array([3, 1])]),
        bad(equal=[np.array([1, 7])]), bad(words=np.ones((7, 5))), bad(basis=np.zeros((5, 1))), bad(neutral=np.array([4, 4])), bad("equal.1", equal=[np.array([1, 2]), np.array([3])]),
    ],
)  # fmt: skip
def hard_debias(
    words: _ROWS, *, basis: _BASIS, neutral: Int[Array, "_"], equal: Sequence[Int[Array, "_"]] = ()
) -> Float[Array, "words d_model"]:
    """A table of words of length 1 in which the neutral ones are neutralized and each equality set is equalized; others stay.

    neutral and the sets in equal are numbers of rows, no row in two places.
    Raises ValueError for a row that there is not, or that is named twice, and as neutralize and equalize do, naming the set.
    """
    named = [("neutral", neutral), *((f"equal.{i}", rows) for i, rows in enumerate(equal))]
    seen: dict[int, str] = {}
    for name, rows in named:
        for row in rows.tolist():
            if not 0 <= row < len(words):
                raise invalid(name, got=f"row {row}", wants=f"rows from 0 to {len(words) - 1}")
            if row in seen:
                raise invalid(name, got=f"row {row}, which is in {seen[row]}", wants=f"no row in two places: {name} and {seen[row]}")
            seen[row] = name
    check_unit_rows("words", words)
    check_basis(basis)

    out = words.copy()
    for name, rows in named:
        try:
            out[rows] = neutralize(words[rows], basis=basis) if name == "neutral" else equalize(words[rows], basis=basis)
        except ValueError as error:
            raise invalid(name, got=f"rows {rows.tolist()}: {error}", wants="words that can be moved") from None
    return out


def _nothing(vectors: Array) -> np.floating:
    """The length that is left by rounding where nothing is."""
    return 100 * np.finfo(vectors.dtype).eps
