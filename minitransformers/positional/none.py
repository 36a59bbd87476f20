"""No positions (NoPE): nothing is put in, and where attention looks only back, the mask alone tells the order.

Without a mask attention sees a set, and its outputs are shuffled as its inputs are. A causal mask breaks this: a position
sees one token more than the one before it. A layer that spreads its weights evenly over a marked first token and all
others reads 1, 1/2, 1/3, ..., which is a position, and from there on a model can count.

Source: Haviv et al. 2022, arXiv:2203.16634; Kazemnejad et al. 2023, arXiv:2305.19466, theorem 1.

    out = x                                                  (1)
    dx = dout                                                (2)
"""

from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept, example


@concept(
    title="No positions (NoPE)",
    source="Kazemnejad et al. 2023, arXiv:2305.19466, theorem 1",
    example=lambda rng: example(rng.normal(size=(2, 5, 3))),
    roles=("position/input",),
)
def none(x: Float[Array, "... positions d_model"]) -> tuple[Array, Backward]:
    """Leave x as it is: a scheme of its own among the positions, so that a model can choose it by name.

    Returns x itself, not a copy, and backward: dout -> dx.
    """
    out = x                                                  # (1)

    def backward(dout):
        dx = dout                                            # (2)
        return dx

    return out, backward
