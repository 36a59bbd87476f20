"""Does a causal mask let anything of the future through?

Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3: scores of later positions are set to minus infinity. Later tokens are exchanged,
and gradients are sent from earlier outputs to later inputs. A few last queries against all keys show where a mask has to end.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import init_multi_head_attention, multi_head_attention, scaled_dot_product_attention
from minitransformers.attention.masks import band_mask, causal_mask, prefix_mask, segment_mask, sliding_window_mask
from minitransformers.reporting import Section

section = Section(__file__, __doc__, kind="exact")
LENGTH, EARLIER, WIDTH, NEW = 10, 6, 16, 3


@section.experiment
def experiment(rng):
    params = init_multi_head_attention(rng, WIDTH, num_heads=4, dtype=np.float64)
    attend = partial(multi_head_attention, params, num_heads=4)
    x = rng.normal(size=(LENGTH, WIDTH))
    changed = np.concatenate([x[:EARLIER], rng.normal(size=(LENGTH - EARLIER, WIDTH))])
    out, backward = attend(x)
    dout = np.concatenate([rng.normal(size=(EARLIER, WIDTH)), np.zeros((LENGTH - EARLIER, WIDTH))])
    yield "outputs that differ", "earlier", {"leak": (out != attend(changed)[0])[:EARLIER].sum()}
    yield "outputs that differ", "later", {"leak": (out != attend(changed)[0])[EARLIER:].sum()}
    yield "largest gradient", "to later inputs", {"leak": np.abs(backward(dout)[1][EARLIER:]).max()}

    q, k, v = rng.normal(size=(3, LENGTH, 8))
    whole, _ = scaled_dot_product_attention(q, k, v, mask=causal_mask(LENGTH))
    for name, mask in (("to the last key", causal_mask(NEW, LENGTH)), ("to the first key", np.tri(NEW, LENGTH, dtype=bool))):
        yield name, NEW, {"off": np.abs(scaled_dot_product_attention(q[-NEW:], k, v, mask=mask)[0] - whole[-NEW:]).max()}


# %%
@section.claim(
    "A causal mask leaks nothing",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3: leftward information flow is prevented by setting scores to minus infinity",
    measured=lambda found: f"{found['leak']['outputs that differ']['earlier'][0]:.0f} earlier outputs change, and "
    f"{found['leak']['outputs that differ']['later'][0]:.0f} later ones; largest gradient to a later input {gradient(found):g}",
)
def nothing(found):
    """When later tokens are exchanged earlier outputs are the same to the bit, all later ones change, and gradients to later tokens are 0."""
    differ = found["leak"]["outputs that differ"]
    return differ["earlier"] == 0 and differ["later"] == (LENGTH - EARLIER) * WIDTH and gradient(found) == 0


@section.claim(
    "A causal mask ends at the last key",
    paper="no paper: new queries are the last of the positions that the keys span",
    measured=lambda found: f"aligned to the last key off by {off(found, 'last'):.0e}, to the first by {off(found, 'first'):.2g}",
)
def ends(found):
    """The last queries against all keys give what the whole text gives, to 1e-12; with the mask aligned to the first key off by over 0.1."""
    return off(found, "last") < 1e-12 and off(found, "first") > 0.1


def gradient(found):
    return float(np.max(found["leak"]["largest gradient"]["to later inputs"]))


def off(found, end):
    return float(np.max(found["off"][f"to the {end} key"][NEW]))


@section.report
def report(found):
    section.value("causal.leak", gradient(found))
    section.value("causal.misaligned", off(found, "first"))


@section.figure("masks", size=(7.2, 1.9), ncols=5)
def picture(axes, found):
    segments = np.array([0] * 5 + [1] * 4 + [2] * 3)
    masks = {
        "causal": causal_mask(12),
        "window of 4": sliding_window_mask(12, window=4),
        "band, reach 2": band_mask(12, reach=2),
        "prefix of 5": prefix_mask(12, prefix=5),
        "causal & segments": causal_mask(12) & segment_mask(segments)[0],
    }
    for ax, (name, mask) in zip(axes, masks.items(), strict=True):
        ax.imshow(np.where(mask, 1.0, np.nan), vmin=0, vmax=1.6, cmap="Blues", interpolation="none")
        ax.set(title=name, xticks=[], yticks=[])
        ax.spines[:].set_visible(True)
        ax.grid(False)
    axes[0].set(xlabel="keys", ylabel="queries")


if __name__ == "__main__":
    section.main()
