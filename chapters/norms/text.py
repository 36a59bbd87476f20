"""The same model of real text with each norm, with none, and with norms of queries and keys or of words: who learns?

Ba, Kiros and Hinton 2016, arXiv:1607.06450: a norm shortens training. Zhang and Sennrich 2019, arXiv:1910.07467, Nguyen and Salazar 2019,
arXiv:1910.05895, and Zhu et al. 2025, arXiv:2503.10622: a simpler one does as well. Dehghani et al. 2023, arXiv:2302.05442, section 2, put
QK-norm in for stability; FixNorm (Nguyen and Salazar) uses every word at length one. Two layers with RoPE; of one seed all have the same
weights at the start and the same batches, and each has a learning rate of its own. Attention matters here: without it counted pairs win.
"""

# %%
import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, counted_pairs, level, lines, mean_and_spread, processor_seconds, tried
from minitransformers.reporting.networks import init_without, without
from minitransformers.reporting.norms import normed
from minitransformers.reporting.norms.normed import Normed, corpus, fresh
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LAYER, RMS, SCALE, CAPSULE, TANH, NONE = "layer norm", "RMS norm", "ScaleNorm", "CapsuleNorm", "Dynamic Tanh", "no norm"
DELETED, QK, FIX = "layer norm, attention deleted", "layer norm, QK-norm", "layer norm, FixNorm"
ENOUGH = 0.07                                                # who needs at most so many bits a character more learns as well
MODELS = {
    LAYER: Normed(mt.init_layer_norm, mt.layer_norm),
    RMS: Normed(mt.init_rms_norm, mt.rms_norm),
    SCALE: Normed(mt.init_scale_norm, mt.scale_norm),
    CAPSULE: Normed(mt.init_capsule_norm, mt.capsule_norm),
    TANH: Normed(mt.init_dynamic_tanh, mt.dynamic_tanh),
    NONE: Normed(init_without, without),
    QK: Normed(of_scores=(mt.init_qk_norm, mt.qk_norm)),
    FIX: Normed(of_words=mt.fix_norm),
    DELETED: Normed(deleted=True),
}


# %%
def trained(name, rng, *, rate, watch=None):
    """Bits a character."""
    return normed.trained(MODELS[name], rng, rate=rate, quick=section.quick, watch=watch)


@section.tuning
def tuning(rng):
    yield from tried(trained, MODELS, (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2), rng)


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    seed = rng.integers(2**32)
    for name in MODELS:
        nats = []
        with processor_seconds() as spent:
            bits = trained(name, np.random.default_rng(seed), rate=section.rates[name], watch=lambda step, loss, params, nats=nats: nats.append(loss))
        yield name, "all", {"bits": bits, "parameters": mt.trees.count_parameters(fresh(MODELS[name], rng)), "seconds": spent()}
        every = min(20, len(nats))
        for step in range(every, len(nats) + 1, every):
            yield name, step, {"training": np.mean(nats[step - every : step]) / np.log(2)}


# %%
def of(found, name):
    return found["bits"][name]["all"]


def told(found, *names):
    return ", ".join(f"{name} {mean_and_spread(of(found, name), '.3f')}" for name in names) + " bits a character"


@section.claim(
    "Does attention matter in this model?",
    paper="no paper: in a model that makes no use of attention norms are compared of something else",
    measured=lambda found: f"{told(found, LAYER, DELETED)}; counted pairs {counted_pairs(corpus()):.2f}",
)
def attention_matters(found):
    """With layer norm at least 0.3 bits a character less than with attention deleted, and less than counted pairs."""
    return of(found, LAYER) <= of(found, DELETED) - 0.3 and of(found, LAYER) < counted_pairs(corpus())


@section.claim(
    "Does a norm speed up learning?",
    paper="Ba, Kiros and Hinton 2016, arXiv:1607.06450, abstract: layer norm substantially reduces training time",
    measured=lambda found: told(found, LAYER, NONE),
)
def speeds_up(found):
    """After as many steps, each at its own rate, at least 0.1 bits a character less with layer norm than with none."""
    return of(found, LAYER) <= of(found, NONE) - 0.1


AS_WELL = {
    RMS: ("RMS norm learns as well as layer norm", "Zhang and Sennrich 2019, arXiv:1910.07467, section 5: comparable quality on all tasks"),
    SCALE: ("ScaleNorm's one gain is enough", "Nguyen and Salazar 2019, arXiv:1910.05895, abstract: at least as good as layer norm, with one learned length"),
    TANH: ("Does Dynamic Tanh take the place of a norm?", "Zhu et al. 2025, arXiv:2503.10622, abstract: matches or exceeds models with norms, mostly without tuning"),
    QK: ("QK-norm costs no quality", "Dehghani et al. 2023, arXiv:2302.05442, section 2: put in for stability; Henry et al. 2020, arXiv:2010.04245: a gain of 0.9 BLEU"),
    FIX: ("Does FixNorm learn as well as words of any length?", "Nguyen and Salazar 2019, arXiv:1910.05895, abstract: pre-norm, ScaleNorm and FixNorm together gain 1.1 BLEU"),
}  # fmt: skip


def as_well(name):
    def rule(found):
        return of(found, name) <= of(found, LAYER) + ENOUGH

    rule.__doc__ = f"At most {ENOUGH} bits (0.05 nats) a character more than with layer norm alone."
    return rule


for name, (claim, paper) in AS_WELL.items():
    section.claim(claim, paper=paper, measured=lambda found, name=name: told(found, LAYER, name))(as_well(name))


@section.report
def report(found):
    pairs, rows = counted_pairs(corpus()), []
    for name in MODELS:
        size, seconds = (np.mean(found[measure][name]["all"]) for measure in ("parameters", "seconds"))
        rows.append([name, int(size), float(f"{seconds:.1f}"), section.rates[name], mean_and_spread(of(found, name))])
    rows.append(["counted pairs of characters", None, None, None, f"{pairs:.2f}"])
    section.table("training", ["model", "parameters", "processor seconds", "rate", "bits a character"], rows)
    keys = ("layer_norm", "rms_norm", "scale_norm", "capsule_norm", "dynamic_tanh", "no_norm", "qk_norm", "fix_norm", "deleted")
    section.values("training", {key: np.mean(of(found, name)) for key, name in zip(keys, MODELS, strict=True)})
    section.values("training", {"steps": normed.STEPS, "pairs": pairs, "characters": normed.BATCH * normed.CONTEXT})


@section.figure("training", size=(6.4, 3.4))
def picture(ax, found):
    shown = (LAYER, RMS, TANH, NONE, DELETED)
    lines(ax, {name: found["training"][name] for name in shown}, xlabel="step", ylabel="bits a character, training", ylim=(2.4, 5))
    level(ax, counted_pairs(corpus()), "counted pairs")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
