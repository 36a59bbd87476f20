"""What can attention not see?

Vaswani et al. 2017, arXiv:1706.03762, section 3.5: without recurrence it does not know the order, which must be put in. And a softmax
does not see what all scores of a query share, so that a bias on the keys can do nothing.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import init_multi_head_attention, multi_head_attention, softmax_attention
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
LENGTH, WIDTH = 10, 16
BLIND, PLACED = "as they are", "with a vector of each place added"


@section.experiment
def experiment(rng):
    params = init_multi_head_attention(rng, WIDTH, num_heads=4, dtype=np.float64)
    x, places = rng.normal(size=(2, LENGTH, WIDTH))
    order = rng.permutation(LENGTH)
    attend = partial(multi_head_attention, params, num_heads=4, core=softmax_attention)
    for name, added in ((BLIND, 0.0), (PLACED, places)):
        yield name, "shuffled", {"difference": np.abs(attend(x[order] + added)[0] - attend(x + added)[0][order]).max()}

    biased = params._replace(key=params.key._replace(bias=rng.normal(size=WIDTH)))
    dparams, _, _ = multi_head_attention(biased, x, num_heads=4)[1](rng.normal(size=x.shape))
    for name in ("query", "key"):
        yield name, "bias", {"gradient": np.abs(getattr(dparams, name).bias).max()}


# %%
@section.claim(
    "Attention without positions does not know the order",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.5: without recurrence or convolution, order must be put in",
    measured=lambda found: f"largest difference {difference(found, BLIND):.0e}; with position vectors {difference(found, PLACED):.2g}",
)
def order_free(found):
    """Shuffled inputs give the same outputs, shuffled alike, to 1e-12; with a vector of each place added they differ by more than 0.1."""
    return difference(found, BLIND) < 1e-12 and difference(found, PLACED) > 0.1


@section.claim(
    "A bias on the keys learns nothing",
    paper="no paper: q·(k + b) adds q·b to all scores of a query, and a softmax ignores what all scores share",
    measured=lambda found: f"largest element of its gradient {gradient(found, 'key'):.0e}, of the query bias's {gradient(found, 'query'):.2g}",
)
def no_gradient(found):
    """Its gradient is zero up to rounding, below 1e-13; that of a bias on the queries is above 1e-3."""
    return gradient(found, "key") < 1e-13 and gradient(found, "query") > 1e-3


def difference(found, name):
    return float(np.max(found["difference"][name]["shuffled"]))


def gradient(found, name):
    return float(np.max(found["gradient"][name]["bias"]))


@section.report
def report(found):
    section.values("order", {"difference": difference(found, BLIND), "with_positions": difference(found, PLACED)})
    section.values("key_bias", {"key": gradient(found, "key"), "query": gradient(found, "query")})


if __name__ == "__main__":
    section.main()
