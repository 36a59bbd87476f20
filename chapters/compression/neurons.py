"""Which hidden units and which layers can go?

Molchanov et al. 2017, arXiv:1611.06440: how much a unit matters is the slope of the loss by a gate at it; the absolute value is taken for each
example, or opposite signs cancel. Men et al. 2024, arXiv:2403.03853: a layer that hardly turns what flows through it can go. The readers have 64
hidden units in each of two layers; 128 units are ranked together and a half or three quarters of them taken out. Then the smaller model, really
smaller, learns on for a while, beside the whole one. Each seed has a language and a reader of its own.
"""

# %%
import numpy as np

from minitransformers.compression.layer_pruning import block_influence, without_layers
from minitransformers.compression.neuron_pruning import without_neurons
from minitransformers.models.gpt2 import gpt2_block
from minitransformers.reporting import Section, lines, mean_and_spread
from minitransformers.reporting import adaptation as at
from minitransformers.reporting.compression.importance import BUSY, LOT, REVERSE, SIZE, SLOPE, SUMMED, unit_scores

section = Section(__file__, __doc__, kind="trained")
BASE_STEPS, RECOVERY, RATE, SEEN, DRAWS = 900, 100, 1e-3, 64, 5
SHARES = (0.5, 0.75)
SCORES = (SLOPE, SUMMED, SIZE, BUSY, LOT, REVERSE)
KEYS = {"slope": SLOPE, "summed": SUMMED, "size": SIZE, "busy": BUSY, "lot": LOT, "reverse": REVERSE}
WHOLE = "nothing taken out"


def without(model, scores, share):
    """Without that share of the units of both layers, those of least score; each layer keeps one at least."""
    order = np.argsort(np.argsort(scores.ravel(), kind="stable"), kind="stable").reshape(scores.shape)
    stays = (order >= share * scores.size) | (order == order.max(axis=1, keepdims=True))
    blocks = [block._replace(feed_forward=without_neurons(block.feed_forward, kept=[int(i) for i in np.flatnonzero(own)])) for block, own in zip(model.blocks, stays, strict=True)]
    return model._replace(blocks=blocks)


def states_of(model, ids):
    """What flows into the first block and out of each."""
    x = model.embedding.weight[ids] + model.positions.table[: ids.shape[1]]
    states = [x]
    for block in model.blocks:
        states.append(gpt2_block(block, states[-1], num_heads=at.HEADS)[0])
    return np.stack(states)


@section.experiment
def experiment(rng):
    language, model = at.own_reader(rng, steps=None if section.quick else BASE_STEPS)
    ids, targets = at.draw(language, rng, count=SEEN)
    scores = unit_scores(model, ids, targets, rng)

    def after(params):
        return at.left(at.fine_tuned(params, at.reader, language, rng, steps=5 if section.quick else RECOVERY, peak=RATE), at.reader, language)

    yield WHOLE, 0.0, {"lost": at.left(model, at.reader, language), "after": after(model)}
    for share in SHARES:
        for name in SCORES:
            smaller = without(model, scores[name], share)
            draws = [smaller] if name != LOT else [without(model, rng.random(scores[LOT].shape), share) for _ in range(DRAWS)]
            yield name, share, {"lost": np.mean([at.left(one, at.reader, language) for one in draws])}
            if name in (SLOPE, SIZE, LOT):
                yield name, share, {"after": after(smaller)}
    for layer, influence in enumerate(block_influence(states_of(model, ids))):
        shorter = model._replace(blocks=without_layers(model.blocks, kept=[place for place in range(at.LAYERS) if place != layer]))
        yield "layer", layer, {"influence": influence, "lost": at.left(shorter, at.reader, language), "after": after(shorter)}


# %%
def told(found, share, *names, measure="lost"):
    return ", ".join(f"{name} {mean_and_spread(found[measure][name][share], '.3f')}" for name in names)


@section.claim(
    "Slopes find units that are not missed",
    paper="Molchanov et al. 2017, arXiv:1611.06440, section 3: nearer to the true order than other scores",
    measured=lambda found: "; ".join(f"{share:.0%} taken out: {told(found, share, SLOPE, LOT)}" for share in SHARES),
)
def slopes_know(found):
    """Half of the units taken out by slope lose at most 0.7 of what half of them taken out by lot lose."""
    return found["lost"][SLOPE][0.5] <= 0.7 * found["lost"][LOT][0.5]


@section.claim(
    "The absolute value comes before the mean",
    paper="Molchanov et al. 2017, arXiv:1611.06440, section 2.2: the expected slope is near zero at a minimum, its spread is not",
    measured=lambda found: "; ".join(f"{share:.0%} taken out: {told(found, share, SLOPE, SUMMED)}" for share in SHARES),
)
def absolute_first(found):
    """Half of the units taken out by the slopes of each text lose at most 0.8 of what those by the slope of the whole batch lose."""
    return found["lost"][SLOPE][0.5] <= 0.8 * found["lost"][SUMMED][0.5]


@section.claim(
    "Slopes know more than activations and weights do",
    paper="Molchanov et al. 2017, arXiv:1611.06440, section 3.2: slopes are ahead of weights and activations",
    measured=lambda found: "; ".join(f"{share:.0%} taken out: {told(found, share, SLOPE, BUSY, SIZE)}" for share in SHARES),
)
def more_than_both(found):
    """Half of the units taken out by slope lose at most 0.9 of what half of them by the better of the two others lose."""
    return found["lost"][SLOPE][0.5] <= 0.9 * min(found["lost"][BUSY][0.5], found["lost"][SIZE][0.5])


@section.claim(
    "Is the layer that turns the stream less missed less?",
    paper="Men et al. 2024, arXiv:2403.03853, section 3: layers of least influence are redundant",
    measured=lambda found: "; ".join(
        f"layer {n}: 1 - cos {mean_and_spread(found['influence']['layer'][n], '.2f')}, loses {mean_and_spread(found['lost']['layer'][n], '.3f')}" for n in range(at.LAYERS)
    ),
)
def influence_tells(found):
    """Without the layer of the smaller 1 - cos at most a quarter is lost of what is lost without the other."""
    least, most = sorted(range(at.LAYERS), key=lambda layer: found["influence"]["layer"][layer])
    return found["lost"]["layer"][least] <= 0.25 * found["lost"]["layer"][most]


@section.report
def report(found):
    rows = [[WHOLE, *[mean_and_spread(found[measure][WHOLE][0.0], ".3f") for measure in ("lost", "after")] * 2]]
    for name in SCORES:
        cells = [mean_and_spread(found[measure][name][share], ".3f") if share in found[measure].get(name, {}) else "" for share in SHARES for measure in ("lost", "after")]
        rows.append([name, *cells])
    rows += [[f"layer {n} taken out", *(mean_and_spread(found[measure]["layer"][n], ".3f") for measure in ("lost", "after")), "", ""] for n in range(at.LAYERS)]
    head = [f"{share:.0%} of the units{later}" for share in SHARES for later in ("", f", {RECOVERY} updates later")]
    section.table("neurons", ["nats too many, taken out by", *head], rows)
    for key, name in KEYS.items():
        section.values(f"neurons.{key}", {f"s{100 * share:.0f}": found["lost"][name][share].mean() for share in SHARES})
    section.values("neurons", {"recovery": RECOVERY, "whole": found["lost"][WHOLE][0.0].mean()})


@section.figure("neurons", size=(6, 3.2))
def picture(ax, found):
    lines(ax, {name: found["lost"][name] for name in SCORES}, xlabel="share of the units taken out", ylabel="nats too many", yscale="log")
    ax.legend()


if __name__ == "__main__":
    section.main()
