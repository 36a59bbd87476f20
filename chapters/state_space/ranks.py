"""How much of the past can the future know?

Dao and Gu 2024, arXiv:2405.21060, theorem 3.5: a state-space model with a state of N numbers is a semiseparable matrix of order N: no block
below the diagonal has a higher rank. A softmax over the same scores has no such bound.
"""

# %%
import numpy as np

from minitransformers import semiseparable, softmax
from minitransformers.attention.masks import causal_mask
from minitransformers.reporting import Section
from minitransformers.state_space.semiseparable import off_diagonal_ranks

section = Section(__file__, __doc__, kind="arithmetic")
LENGTH, D_STATE = 64, 4
SSD, SOFTMAX = f"SSD, a state of {D_STATE}", "softmax attention"


# %%
def matrices(rng):
    """What maps inputs to outputs, for a recurrence, and for a softmax over the same scores."""
    B, C = rng.normal(size=(2, LENGTH, D_STATE))
    M, _ = semiseparable(-rng.uniform(0.0, 0.2, LENGTH), B, C)
    weights, _ = softmax(np.where(causal_mask(LENGTH), C @ B.T, -np.inf))
    return {SSD: M, SOFTMAX: weights}


def singular_values(matrix):
    """Those of the middle block, the first as 1."""
    values = np.linalg.svd(matrix[LENGTH // 2 :, : LENGTH // 2], compute_uv=False)
    return values / values[0]


@section.experiment
def experiment(rng):
    for name, matrix in matrices(rng).items():
        yield name, "all cuts", {"rank": off_diagonal_ranks(matrix).max(), "next": singular_values(matrix)[D_STATE]}


# %%
@section.claim(
    "A state of N numbers is a matrix whose blocks below the diagonal have rank N",
    paper="Dao and Gu 2024, arXiv:2405.21060, theorem 3.5: a state-space model of state size N is a semiseparable matrix of order N",
    kind="exact",
    measured=lambda found: f"at most {ranks(found, SSD)}; singular value {D_STATE + 1} of the middle block is at most {np.max(found['next'][SSD]['all cuts']):.0e} "
    "of the first",
)
def bounded(found):
    """With a state of 4 the highest rank at any of 63 cuts is 4."""
    return found["rank"][SSD]["all cuts"] == D_STATE


@section.claim(
    "With a softmax over the same scores they have any rank",
    paper="no paper: an exponential of a product of few columns is not such a product itself",
    measured=lambda found: f"at most {ranks(found, SOFTMAX)}",
)
def unbounded(found):
    """The highest rank is 32, as high as a block of 64 positions can have."""
    return found["rank"][SOFTMAX]["all cuts"] == LENGTH // 2


def ranks(found, name):
    return ", ".join(f"{rank:.0f}" for rank in np.atleast_1d(found["rank"][name]["all cuts"]))


@section.report
def report(found):
    highest = {key: int(np.max(found["rank"][name]["all cuts"])) for key, name in (("ssd", SSD), ("softmax", SOFTMAX))}
    section.values("duality.ranks", {**highest, "positions": LENGTH, "d_state": D_STATE, "next": np.max(found["next"][SSD]["all cuts"])})


@section.figure("duality", size=(8.4, 2.9), ncols=3, width_ratios=(1, 1, 1.25))
def picture(axes, found):
    shown, half = matrices(np.random.default_rng(section.seed)), LENGTH // 2
    for ax, (name, matrix) in zip(axes[:2], shown.items(), strict=True):
        ax.imshow(np.where(causal_mask(LENGTH), np.abs(matrix) ** 0.5, np.nan))  # roots: small entries are to be seen
        corner = half - 0.5
        ax.plot([-0.5, corner, corner, -0.5, -0.5], [corner, corner, LENGTH - 0.5, LENGTH - 0.5, corner], color="C1", linewidth=1.6)
        ax.set(title=name, xlabel="input", xticks=[0, half, LENGTH - 1], yticks=[0, half, LENGTH - 1])
        ax.grid(False)
    axes[0].set_ylabel("output")
    for (name, matrix), marker, front in zip(shown.items(), "os", (3, 2), strict=True):
        values = np.maximum(singular_values(matrix), 1e-18)
        axes[2].semilogy(np.arange(1, half + 1), values, marker=marker, linestyle="none", zorder=front, label=name)
    axes[2].set(title="singular values of the framed block", xlabel="number")
    axes[2].legend()


if __name__ == "__main__":
    section.main()
