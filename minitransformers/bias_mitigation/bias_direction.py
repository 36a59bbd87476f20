"""The direction in which published pairs of words differ, and how far other words lie along it.

Each pair is centred, so that only the difference within it is left. The directions in which most of these differences lie span
the bias subspace. Direct bias is how far words that should be neutral lie along its first direction; indirect bias is the part of
two words' similarity that comes from it.

Source: Bolukbasi et al. 2016, arXiv:1607.06520, section 5. Differs from the paper: the sign of a direction, which the
singular vectors leave open, is fixed by one pair. Vectors are divided by their lengths first, as there. Costs one singular value
decomposition of (2 pairs, d_model). u and v are rows of a pair, w and w' words, all of length 1; g is a direction of length 1.

    rows of C = u - (u + v) / 2 and v - (u + v) / 2, for each pair   (1)
    C = L diag(s) R^T, basis = the first k columns of R      (2)
    sign: (u - v) basis > 0 for one pair                     (3)
    share_j = s_j^2 / sum of all s^2                         (4)
    direct bias = mean over words of |w . g|^c               (5)
    rest(w) = w - (w . g) g                                  (6)
    indirect bias = (w . w' - cos(rest(w), rest(w'))) / w . w'   (7)
"""

import warnings
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.bias_mitigation.weat import unit_rows
from minitransformers.foundation import at_least, bad, example, finite, invalid, positive, procedure

# Below this a direction is said to be doubtful: its share, and how many times the second share the first is.
CLEAR_SHARE, CLEAR_LEAD = 0.3, 1.1
_PARALLEL = 1e-8                                             # of two cosines or lengths, what counts as 0


class BiasSubspace(NamedTuple):
    """Orthonormal columns, the direction of most difference first, and each direction's share of all that differs within pairs."""

    basis: Float[Array, "d_model k"]
    shares: Float[Array, "directions"]


def _pairs(rng: np.random.Generator) -> tuple[Array, Array]:
    """Three pairs that differ in their first feature most."""
    middle, apart = rng.normal(size=(3, 5)), np.eye(5)[0] + 0.1 * rng.normal(size=(3, 5))
    return middle + apart, middle - apart


@procedure(
    title="Bias direction",
    source="Bolukbasi et al. 2016, arXiv:1607.06520, section 5",
    example=lambda rng: example(*_pairs(rng), sign_pair=1),
    rejects=[
        bad("k", k=6), bad("sign_pair", sign_pair=3), bad(first=np.zeros((3, 5))), bad("first", first=np.eye(3, 5), second=2 * np.eye(3, 5)),
        bad("k", first=np.eye(1, 5), second=np.eye(1, 5, 1), sign_pair=0, k=2),
    ],
)  # fmt: skip
def bias_direction(
    first: Annotated[Float[Array, "pairs d_model"], finite], second: Annotated[Float[Array, "pairs d_model"], finite], *,
    k: Annotated[int, at_least(1)] = 1, sign_pair: Annotated[int, at_least(0)] = 0,
) -> BiasSubspace:  # fmt: skip
    """The k directions in which the rows of first and second differ most, pair by pair; the vectors may have any length.

    Each direction points from second to first in pair number sign_pair. Computed in float64. Warns where the first share is below 0.3,
    or less than 1.1 times the second: then the pairs do not agree on one direction.
    Raises ValueError for a vector of zeros, pairs that all are of one direction, a sign_pair that is no pair, and where k is more
    than the pairs or the features, or than the directions in which pairs differ at all.
    """
    if sign_pair >= len(first):
        raise invalid("sign_pair", got=sign_pair, wants=f"a pair from 0 to {len(first) - 1}")
    if k > min(2 * len(first), first.shape[1]):
        raise invalid("k", got=k, wants=f"at most the {2 * len(first)} rows of pairs and the {first.shape[1]} features")
    u, v = unit_rows("first", first), unit_rows("second", second)
    centred = np.concatenate([u - (u + v) / 2, v - (u + v) / 2])  # (1)
    _, s, rows = np.linalg.svd(centred, full_matrices=False)  # (2)
    if not s[0] > _PARALLEL:
        raise invalid("first", got="pairs of one direction each", wants="pairs that differ from second")
    differing = int(np.count_nonzero(s > s[0] * max(centred.shape) * np.finfo(float).eps))
    if k > differing:
        raise invalid("k", got=k, wants=f"at most {differing}: in no other direction do pairs differ")

    basis = rows[:k].T
    basis = np.where((u - v)[sign_pair] @ basis < 0, -basis, basis)  # (3)
    shares = s**2 / np.sum(s**2)                             # (4)
    if shares[0] < CLEAR_SHARE or (len(shares) > 1 and shares[0] < CLEAR_LEAD * shares[1]):
        warnings.warn(f"the pairs agree little: first shares {', '.join(f'{share:.3f}' for share in shares[:2])}", stacklevel=5)
    return BiasSubspace(basis, shares)


@procedure(
    title="Direct bias",
    source="Bolukbasi et al. 2016, arXiv:1607.06520, section 5",
    example=lambda rng: example(rng.normal(size=(4, 5)), rng.normal(size=5), strictness=0.7),
    rejects=[bad(words=np.zeros((4, 5))), bad(direction=np.zeros(5))],
)
def direct_bias(
    words: Annotated[Float[Array, "words d_model"], finite], direction: Annotated[Float[Array, "d_model"], finite], *,
    strictness: Annotated[float, positive] = 1.0,
) -> np.floating:  # fmt: skip
    """How far words lie along a direction on the average, from 0 (orthogonal) to 1 (parallel); vectors of any length.

    strictness is the paper's c, an exponent above 0: the smaller, the more a small share counts. At 0 it would only count words.
    Raises ValueError for vectors of zeros.
    """
    cosines = unit_rows("words", words) @ unit_rows("direction", direction[None])[0]
    return np.mean(np.abs(cosines) ** strictness)            # (5)


@procedure(
    title="Indirect bias",
    source="Bolukbasi et al. 2016, arXiv:1607.06520, section 5",
    example=lambda rng: example(rng.uniform(0.5, 1, size=(2, 5)), rng.uniform(0.5, 1, size=(2, 5)), rng.normal(size=5)),
    rejects=[
        bad("word", word=np.eye(2, 5), other=np.eye(2, 5, 1)), bad("word", word=np.eye(2, 5), direction=np.eye(5)[0]), bad(direction=np.zeros(5)),
        bad("other", other=np.eye(2, 5), direction=np.eye(5)[0]),
    ],
)  # fmt: skip
def indirect_bias(
    word: Annotated[Float[Array, "*batch d_model"], finite], other: Annotated[Float[Array, "*batch d_model"], finite],
    direction: Annotated[Float[Array, "d_model"], finite],
) -> Float[Array, "*batch"]:  # fmt: skip
    """The share of two words' similarity that comes from their parts along direction; vectors of any length.

    1 where nothing else makes them similar, 0 where neither has such a part; below 0 where these parts made them less similar.
    Raises ValueError for vectors of zeros, orthogonal words (|cos| < 1e-8: no similarity to have a share of), and words along direction.
    """
    u, v, g = unit_rows("word", word), unit_rows("other", other), unit_rows("direction", direction[None])[0]
    similarity = np.sum(u * v, axis=-1)
    if np.min(np.abs(similarity)) < _PARALLEL:
        raise invalid("word", got="one that is orthogonal to its other", wants="words that are similar or opposed")
    rests = [w - (w @ g)[..., None] * g for w in (u, v)]     # (6)
    for name, rest in zip(("word", "other"), rests, strict=True):
        if np.min(np.linalg.norm(rest, axis=-1)) < _PARALLEL:
            raise invalid(name, got="one that lies along direction", wants="words with another part as well")

    remaining = np.sum(unit_rows("word", rests[0]) * unit_rows("other", rests[1]), axis=-1)
    return (similarity - remaining) / similarity             # (7)
