"""Does cross-attention find out by itself which symbol belongs to which?

Bahdanau, Cho and Bengio 2014, arXiv:1409.0473, section 5.2.1: the alignment of source and target words appears in the weights. Symbols
with their places are the memory, and each place that is written asks it with a vector of its own. The text is to be written in reverse,
and nobody says which symbol belongs to which place.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import chain, cross_attention, embedding, init_cross_attention, init_embedding, init_linear, linear
from minitransformers.attention.heads import split_heads
from minitransformers.attention.scaled_dot_product_attention import attention_weights
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LENGTH, SYMBOLS, WIDTH, STEPS = 8, 10, 32, 400
PLACES = np.arange(LENGTH)


# %%
def fresh(rng):
    """Tables of symbols, of places and of questions; an attention, and a head."""
    tables = tuple(init_embedding(rng, rows, WIDTH, std=1.0) for rows in (SYMBOLS, LENGTH, LENGTH))
    return tables, (init_cross_attention(rng, WIDTH, num_heads=1), init_linear(rng, WIDTH, SYMBOLS))


def model(params, ids):
    tables, body = params
    places = np.broadcast_to(PLACES, ids.shape)
    (symbol, place, question), backwards = zip(*(embedding(t, ids=i) for t, i in zip(tables, (ids, places, places), strict=True)), strict=True)
    logits, body_backward = chain(body, question, symbol + place, parts=(partial(cross_attention, num_heads=1), linear))

    def backward(dlogits):
        dbody, dquestion, dmemory = body_backward(dlogits)
        return tuple(back(d) for back, d in zip(backwards, (dmemory, dmemory, dquestion), strict=True)), dbody

    return logits, backward


def draw(rng, *, batch_size=64):
    ids = rng.integers(SYMBOLS, size=(batch_size, LENGTH))
    return ids, ids[:, ::-1]


def mean_weights(params, ids):
    """Of each place that is written on each that is read."""
    (symbols, places, questions), (attention, _) = params
    q, k = linear(attention.query, questions.weight)[0], linear(attention.key, symbols.weight[ids] + places.weight)[0]
    return attention_weights(split_heads(q, 1), split_heads(k, 1)).mean((0, 1))


@section.experiment
def experiment(rng):
    hold_blas()
    params = fit(fresh(rng), Labelled(model, draw), steps=20 if section.quick else STEPS, peak=1e-2, rng=rng)
    ids, targets = draw(rng, batch_size=256)
    weights = mean_weights(params, ids)
    exact = (model(params, ids)[0].argmax(-1) == targets).all(-1).mean()
    yield "reader", "all", {"exact": exact, "diagonal": np.trace(weights[:, ::-1]) / LENGTH}
    for written in PLACES:
        for read in PLACES:
            yield "weights", (written, read), {"weight": weights[written, read]}


# %%
@section.claim(
    "Cross-attention finds the alignment by itself",
    paper="Bahdanau et al. 2014, arXiv:1409.0473, section 5.2.1: the alignment appears in the weights; Vaswani et al. 2017, section 3.2.3",
    measured=lambda found: f"after {STEPS} updates {share(found, 'exact')} % of new texts are reversed without a mistake, and "
    f"{share(found, 'diagonal')} % of the weight is on the mirrored places",
)
def finds(found):
    """More than 99 % of new texts are reversed without a mistake, and at least 80 % of the weight is on the mirrored places."""
    return found["exact"]["reader"]["all"] > 0.99 and found["diagonal"]["reader"]["all"] >= 0.8


def share(found, measure):
    return mean_and_spread(100 * found[measure]["reader"]["all"], ".1f")


@section.report
def report(found):
    for measure in ("exact", "diagonal"):
        section.value(f"reversal.{measure}", 100 * found[measure]["reader"]["all"].mean())
    section.values("reversal", {"steps": STEPS, "length": LENGTH})


@section.figure("alignment", size=(3.4, 3))
def picture(ax, found):
    weights = np.array([of.mean() for of in found["weight"]["weights"].values()]).reshape(LENGTH, LENGTH)
    image = ax.pcolormesh(weights, cmap="Blues", vmin=0, vmax=1, edgecolors="#808080", linewidth=0.1)
    ax.set(xlabel="symbol that is read", ylabel="symbol that is written", aspect="equal")
    ax.set(xticks=PLACES + 0.5, xticklabels=PLACES + 1, yticks=PLACES + 0.5, yticklabels=PLACES + 1)
    ax.invert_yaxis()
    ax.grid(False)
    ax.figure.colorbar(image, label="weight")


if __name__ == "__main__":
    section.main()
