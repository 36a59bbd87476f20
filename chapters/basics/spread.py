"""How large must the weights of a linear map be, for a signal to come through many of them?

LeCun et al. 1998, Efficient BackProp, section 4.6: weights of standard deviation 1/sqrt(d_in) give outputs of the spread of the inputs.
What one map does to the spread is a factor, and the factors of maps in a row multiply. Random weights, random inputs.
"""

# %%
import numpy as np

from minitransformers import init_linear, linear
from minitransformers.reporting import Section, lines

section = Section(__file__, __doc__, kind="arithmetic")
DEPTH, WIDTH = 20, 256
FITTED = "1/√d_in"
SPREADS = {FITTED: WIDTH**-0.5, "0.1": 0.1, "0.02": 0.02}


@section.experiment
def experiment(rng):
    for name, std in SPREADS.items():
        x = rng.standard_normal((64, WIDTH), np.float32)
        yield name, 0, {"spread": x.std()}
        for depth in range(1, DEPTH + 1):
            x, _ = linear(init_linear(rng, WIDTH, WIDTH, std=std, bias=False), x)
            yield name, depth, {"spread": x.std()}


# %%
def left(found, name):
    """The spread after all maps over that of the input."""
    return found["spread"][name][DEPTH] / found["spread"][name][0]


@section.claim(
    "Weights of spread 1/√d_in keep the size of a signal",
    paper="LeCun et al. 1998, Efficient BackProp, section 4.6: with weights of standard deviation 1/√d_in the outputs have the spread of the inputs",
    measured=lambda found: f"after {DEPTH} maps of width {WIDTH}, in times of the first: {', '.join(f'{np.mean(left(found, name)):.2g} with {name}' for name in SPREADS)}",
)
def keeps(found):
    """After all maps between half and twice the first spread; with 0.1 more than a thousand times, with 0.02 less than a millionth."""
    return 0.5 < left(found, FITTED) < 2 and left(found, "0.1") > 1e3 and left(found, "0.02") < 1e-6


@section.claim(
    "Factors of maps in a row multiply",
    paper="LeCun et al. 1998, Efficient BackProp, section 4.6: the variance of a sum of d_in independent terms is d_in times that of one",
    measured=lambda found: ", ".join(f"with {name} {np.mean(left(found, name)):.2g} for {multiplied(std):.2g}" for name, std in SPREADS.items()),
)
def multiply(found):
    """The spread that is left is the standard deviation of the weights times √d_in, to the power of the depth, to within a factor of two."""
    return all(0.5 < left(found, name) / multiplied(std) < 2 for name, std in SPREADS.items())


def multiplied(std):
    return (std * WIDTH**0.5) ** DEPTH


@section.report
def report(found):
    section.values("linear", {"depth": DEPTH, "width": WIDTH})
    section.values("linear", {key: np.mean(left(found, name)) for key, name in {"kept": FITTED, "grown": "0.1", "shrunk": "0.02"}.items()})


@section.figure("linear_depth")
def picture(ax, found):
    curves = {f"weights of {name}": of for name, of in found["spread"].items()}
    lines(ax, curves, xlabel=f"linear maps of width {WIDTH}", ylabel="standard deviation of the features", yscale="log")
    ax.set_xticks(range(0, DEPTH + 1, 5))
    ax.legend()


if __name__ == "__main__":
    section.main()
