"""Why are scores divided by the square root of the width?

Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1 and its footnote: products of wide random vectors are large, and push the softmax
to where its gradient is extremely small. Queries and keys are drawn from N(0, 1), 64 keys to a query.
"""

# %%
import numpy as np

from minitransformers.attention.scaled_dot_product_attention import attention_weights
from minitransformers.reporting import Section, along, lines, ticks_at

section = Section(__file__, __doc__, kind="arithmetic")
WIDTHS, KEYS, QUERIES = (4, 16, 64, 256, 1024), 64, 50
SCALED, UNSCALED = "scores q·k / √d", "scores q·k"


@section.experiment
def experiment(rng):
    for d in WIDTHS:
        texts = 5 if section.quick else 40
        q, k = rng.normal(size=(texts, QUERIES, d)), rng.normal(size=(texts, KEYS, d))
        for name, scale in ((UNSCALED, 1.0), (SCALED, d**-0.5)):
            weights = attention_weights(q, k, scale=scale)
            squares, cubes = (weights**2).sum(-1), (weights**3).sum(-1)
            # |diag(p) - p p^T|^2 = sum p^2 - 2 sum p^3 + (sum p^2)^2
            jacobian = np.sqrt(np.maximum(squares - 2 * cubes + squares**2, 0))
            yield name, d, {"largest": weights.max(-1).mean(), "jacobian": jacobian.mean()}


# %%
@section.claim(
    "Without 1/√d the softmax saturates as d grows",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1: for large d the products push the softmax into regions of extremely small gradients",
    measured=lambda found: f"at d = 1,024 the largest weight is {found['largest'][UNSCALED][1024].mean():.2f}; the Jacobian falls from "
    f"{along(found['jacobian'][UNSCALED]).mean(1).max():.2f} to {found['jacobian'][UNSCALED][1024].mean():.3f}",
)
def saturates(found):
    """At d = 1,024 the mean largest of 64 weights is above 0.9, and the Jacobian is below a quarter of the largest at any d."""
    jacobian = along(found["jacobian"][UNSCALED])
    return found["largest"][UNSCALED][1024] > 0.9 and jacobian[-1] < jacobian.max() / 4


@section.claim(
    "With 1/√d the softmax is the same at every width",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1: to counteract this effect, products are scaled by 1/√d",
    measured=lambda found: f"from d = 4 to 1,024: largest weight {told(found, 'largest')}; Jacobian {told(found, 'jacobian')}",
)
def flat(found):
    """From d = 4 to 1,024 the largest weight and the Jacobian both stay within a tenth of their means."""
    return all(np.abs(values - values.mean()).max() < values.mean() / 10 for values in (along(of[SCALED]) for of in found.values()))


def told(found, measure):
    return ", ".join(f"{values.mean():.3f}" for values in found[measure][SCALED].values())


@section.report
def report(found):
    for measure, of in found.items():
        for d in WIDTHS:
            section.value(f"scale.scaled.{measure}.d{d}", of[SCALED][d].mean())
            section.value(f"scale.unscaled.{measure}.d{d}", of[UNSCALED][d].mean())


@section.figure("scale", size=(6.4, 2.8), ncols=2)
def picture(axes, found):
    for ax, measure, title in zip(axes, found, ("largest weight of a query", "size of the softmax Jacobian"), strict=True):
        lines(ax, found[measure], xlabel="d", title=title, xscale="log", ylim=(0, 1.05 if measure == "largest" else None))
        ticks_at(ax, list(WIDTHS))
    axes[0].legend()


if __name__ == "__main__":
    section.main()
