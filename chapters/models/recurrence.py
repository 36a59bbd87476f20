"""Does a Transformer learn more than a recurrence of its size, and from farther back?

Vaswani et al. 2017, arXiv:1706.03762, sections 1 and 4: a recurrent network carries a signal through every step that lies between two
positions, attention joins them in one, and short paths make far dependencies easier to learn. Two blocks of attention and one GRU (Cho
et al. 2014, arXiv:1406.1078) stand in one frame, as large as each other: embeddings, a residual stream, RMSNorm, a head. A second
GRU starts with update gates nearly shut, so that its state stays for longer. Both learn once more from three times the updates.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers import reporting
from minitransformers.reporting.networks import gru_layer, init_gru_layer, network
from minitransformers.training.fit import fit
from minitransformers.training.language_modelling import LanguageModelling
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = reporting.Section(__file__, __doc__, kind="trained")
LENGTH, WIDTH, HIDDEN, BATCH, STEPS, START = 64, 48, 108, 16, 400, 0.1
TRANSFORMER, GRU, SHUT, DELETED = "Transformer", "GRU", "GRU, gates that start shut", "Transformer, its own position alone"
TRANSFORMER_LONG, GRU_LONG = "Transformer, 3 times the updates", "GRU, 3 times the updates"
MODELS = {TRANSFORMER: STEPS, GRU: STEPS, SHUT: STEPS, DELETED: STEPS, TRANSFORMER_LONG: 3 * STEPS, GRU_LONG: 3 * STEPS}
DISTANCES = (1, 2, 4, 8, 16, 32, 63)
corpus = Corpus.load(context=LENGTH)
PAIRS, apart = reporting.counted_pairs(corpus), Corpus.from_text(corpus.train_text, context=LENGTH)  # rates are chosen without the validation part


# %% A model is a chain: embeddings, what is between, a norm and a head
def made(name, vocabulary, rng):
    """Its parts behind the embeddings, and the parameters of all."""
    own = {"mixer": "sliding_window_attention", "options": {"mixer": {"window": 1}}} if name == DELETED else {}
    config = mt.LanguageModelConfig(vocabulary, LENGTH, WIDTH, 2, position="rope", norm="rms_norm", tied=False, **own)
    whole, around = mt.init_language_model(rng, config, std=START), config.bound
    between = [partial(mt.transformer_block, mixer=m.call, channel=around.channel, norm=mt.rms_norm) for m in around.mixers]
    params = whole.blocks
    if name in (GRU, SHUT, GRU_LONG):                        # with a bias of -2 an eighth of each feature is written over
        between, params = [gru_layer], [init_gru_layer(rng, WIDTH, HIDDEN, update=-2 if name == SHUT else 0)]
    return (*between, mt.rms_norm, mt.linear), (whole.embedding, *params, whole.final_norm, whole.head)


def trained(name, rng, *, text, rate, share=1):
    """Its parts and their parameters, and bits a character on the whole validation part of the text."""
    parts, params = made(name, text.vocabulary.size, rng)
    model, limit = network(*parts), 16 if section.quick else None
    task = LanguageModelling(text, lambda params, *, ids: model(params, ids), context=LENGTH, batch_size=BATCH, eval_windows=limit)
    steps = 3 if section.quick else MODELS[name] // share
    params = fit(params, task, steps=steps, peak=rate, rng=rng, warmup=0.1, floor=0.05)
    return parts, params, task.evaluate(params)["bits per character"]


def reach(parts, params):
    """Norm of the gradient of the last log-probability in each embedding, by distance, the last one's own as 1; means over 256 windows."""
    windows = corpus.evaluation_batches(batch_size=64, context=LENGTH, limit=64 if section.quick else 256)
    return reporting.gradient_by_distance(partial(mt.chain, params[1:], parts=parts), params[0].weight, windows)


@section.tuning
def tuning(rng):
    def lost(name, own, *, rate):
        return trained(name, own, text=apart, rate=rate, share=2)[2]

    yield from reporting.tried(lost, MODELS, (1e-2,) if section.quick else (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2), rng, alike=False)


@section.experiment
def experiment(rng):
    hold_blas()
    for name in MODELS:
        with reporting.processor_seconds() as spent:
            parts, params, measured = trained(name, rng, text=corpus, rate=section.rates[name])
        yield name, "all", {"bits": measured, "seconds": spent(), "parameters": mt.trees.count_parameters(params)}
        for distance, share in enumerate(reach(parts, params)):
            if distance and name != DELETED:
                yield name, distance, {"reach": share}


# %%
def of(found, name, measure="bits", x="all"):
    return found[measure][name][x]


@section.claim(
    "Does a Transformer learn sooner than a GRU of its size?",
    paper="Vaswani et al. 2017, arXiv:1706.03762, table 2: a better translation than recurrent networks, for less training",
    measured=lambda found: reporting.listed(found["bits"], (TRANSFORMER, GRU, SHUT)) + " bits a character",
)
def sooner(found):
    """After the same updates at least 0.1 bits a character fewer than the better of the two GRUs."""
    return of(found, TRANSFORMER) <= min(of(found, GRU), of(found, SHUT)) - 0.1


@section.claim(
    "Is it ahead after three times the updates?",
    paper="Vaswani et al. 2017, arXiv:1706.03762, table 2: a better translation than recurrent networks, after 12 hours on 8 GPUs",
    measured=lambda found: reporting.listed(found["bits"], (TRANSFORMER_LONG, GRU_LONG)) + " bits a character",
)
def ahead(found):
    """At least 0.05 bits a character fewer than the GRU that took as many updates."""
    return of(found, TRANSFORMER_LONG) <= of(found, GRU_LONG) - 0.05


@section.claim(
    "Does a Transformer learn from farther back?",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 4: the shorter the paths, the easier far dependencies are learned",
    measured=lambda found: "; ".join(f"{d} back: {reporting.listed(found['reach'], found['reach'], d, '.3f')}" for d in (16, 1)),
)
def farther(found):
    """16 characters back the gradient is, relative to that of the last position, at least 5 times the GRU's; of either GRU."""
    return all(of(found, TRANSFORMER, "reach", 16) >= 5 * of(found, name, "reach", 16) for name in (GRU, SHUT))


@section.claim(
    "Do gates that start shut let a GRU learn from farther back?",
    paper="Tallec and Ollivier 2018, arXiv:1804.11188, section 2: the biases of gates set the time over which a network remembers",
    measured=lambda found: f"16 back: {reporting.listed(found['reach'], found['reach'], 16, '.3f')}; "
    f"{reporting.listed(found['bits'], (GRU, SHUT))} bits a character",
)
def shut(found):
    """16 characters back at least twice the gradient of the other GRU, and no more bits a character."""
    return of(found, SHUT, "reach", 16) >= 2 * of(found, GRU, "reach", 16) and of(found, SHUT) <= of(found, GRU)


@section.report
def report(found):
    bits = {name: reporting.mean_and_spread(of(found, name)) for name in MODELS}
    rows = [[name, bits[name], *reporting.size_and_time(found, name), f"{section.rates[name]:g}"] for name in MODELS]
    rows.append(["counted pairs", f"{PAIRS:.2f}", None, None, ""])
    section.table("recurrence", ["model", "bits a character", "parameters", "processor seconds", "rate"], rows)
    rows = [[name, *(float(f"{np.mean(of(found, name, 'reach', d)):.2g}") for d in DISTANCES)] for name in found["reach"]]
    section.table("reach", ["gradient in a character so far back", *map(str, DISTANCES)], rows)
    keys = {"transformer": TRANSFORMER, "gru": GRU, "shut": SHUT, "transformer_long": TRANSFORMER_LONG, "gru_long": GRU_LONG}
    for key, name in keys.items():
        numbers = {f"reach_{d}": np.mean(of(found, name, "reach", d)) for d in DISTANCES}
        section.values(f"recurrence.{key}", {measure: np.mean(of(found, name, measure)) for measure in ("bits", "seconds")} | numbers)
    section.values("recurrence", {"steps": STEPS, "batch": BATCH, "length": LENGTH, "hidden": HIDDEN, "width": WIDTH})


@section.figure("reach", size=(6, 3.4))
def picture(ax, found):
    reporting.lines(ax, found["reach"], marker="", xlabel="characters back", ylabel="gradient, last position = 1", xscale="log", yscale="log")
    reporting.ticks_at(ax, list(DISTANCES))
    ax.legend()


if __name__ == "__main__":
    section.main()
