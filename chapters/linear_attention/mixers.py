"""Every mixer of the house on the same text: who keeps up with softmax attention?

Sun et al. 2023, arXiv:2307.08621, section 3.2, Yang et al. 2023, arXiv:2312.06635, section 5.1, and Gu and Dao 2023, arXiv:2312.00752,
section 4.2: recurrences with decays or gates model language as well as a Transformer. Here each mixer stands in the same small language
model, for as many updates on Python's language reference. The feed-forward networks are as wide as makes all models equally large, and
each mixer has a learning rate of its own. Beside them stand attention that reads its own position alone, and counted pairs.
"""

# %%
import inspect
from functools import partial

import numpy as np

from minitransformers import LanguageModelConfig, catalogue, init_language_model, language_model, trees
from minitransformers.reporting import Section, apart, bits_in_windows, counted_pairs, dots
from minitransformers.reporting.networks import hidden_for
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled, on_ids
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LENGTH, WIDTH, STEPS, PARAMETERS = 64, 48, 300, 72_000
DELETED, PAIRS, SOFTMAX = "its own position alone", "counted pairs", "multi_head_attention"
RECURRENT = ("retnet", "gated_linear_attention", "rwkv", "mamba", "mamba2")  # of which the papers say that they keep up
OPTIONS = {                                                  # of mixers whose defaults are for longer texts, or that have none
    "sliding_window_attention": {"window": 16},
    "grouped_query_attention": {"num_kv_heads": 2},
    "causal_longformer_attention": {"window": 16, "global_positions": [0]},
    "bmojo_blocks": {"window": 16, "memory": 16},
}
MIXERS = {name: (name, OPTIONS.get(name, {})) for name in catalogue.concepts(role="mixer")}
MIXERS[DELETED] = ("sliding_window_attention", {"window": 1})
corpus = Corpus.load(context=LENGTH)
within = Corpus.from_text(corpus.train_text, context=LENGTH)  # rates are chosen without the validation part


# %%
def position(mixer):
    """Rotations where there is a place for them, or else biases; a table for Reformer; a recurrence knows the order by itself."""
    takes = inspect.signature(catalogue.entries()[mixer].function).parameters
    if "prepare" in takes:
        return "rope"
    if "bias" in takes:
        return "alibi"
    return "learned" if mixer == "reformer_attention" else "none"


def config_of(name, hidden, *, vocabulary):
    mixer, options = MIXERS[name]
    return LanguageModelConfig(
        vocabulary, context=LENGTH, d_model=WIDTH, num_layers=2, num_heads=4, mixer=mixer, position=position(mixer),
        options={"mixer": options, "channel": {"d_hidden": hidden}},
    )  # fmt: skip


def trained(name, rng, *, text, rate, steps=STEPS):
    """Bits a character on the validation part of a text, and how many parameters the model has.

    Its feed-forward networks make up for what the mixer has fewer parameters than others.
    """
    of_width = partial(config_of, name, vocabulary=text.vocabulary.size)
    config = of_width(hidden_for(PARAMETERS, lambda hidden: init_language_model(rng, of_width(hidden))))
    model, params = partial(language_model, config=config), init_language_model(rng, config, std=0.1)
    task = Labelled(on_ids(model), partial(text.batch, batch_size=8, context=LENGTH))
    params = fit(params, task, steps=3 if section.quick else steps, peak=rate, rng=rng, warmup=0.1, floor=0.05)
    judged = text.validation[:513] if section.quick else text.validation
    return bits_in_windows(partial(model, params), judged, LENGTH), trees.count_parameters(params)


@section.tuning
def tuning(rng):
    hold_blas()
    for name in MIXERS:
        for rate in (6e-3,) if section.quick else (3e-3, 6e-3, 1.2e-2, 2.4e-2, 4.8e-2):
            bits, _ = trained(name, np.random.default_rng(rng.integers(2**32)), text=within, rate=rate, steps=STEPS // 2)
            yield name, rate, {"loss": bits}


@section.experiment
def experiment(rng):
    hold_blas()
    yield PAIRS, "all", {"bits": counted_pairs(corpus), "parameters": corpus.vocabulary.size**2}
    for name in MIXERS:
        bits, parameters = trained(name, rng, text=corpus, rate=section.rates[name])
        yield name, "all", {"bits": bits, "parameters": parameters}


# %%
def of(found, name):
    return found["bits"][name]["all"]


def told(found, *names):
    return ", ".join(f"{name} {np.mean(of(found, name)):.2f}" for name in names)


@section.claim(
    "Does every mixer beat a model whose positions do not meet, and counted pairs?",
    paper="no paper: what does not beat a model whose positions do not meet has not been shown to mix",
    measured=lambda found: f"the worst: {told(found, max(catalogue.concepts(role='mixer'), key=lambda name: np.mean(of(found, name))))}; "
    f"{told(found, DELETED, PAIRS)} bits a character",
)
def mixes(found):
    """Every mixer needs at least 0.2 bits a character less than one that reads its own position alone, and fewer than counted pairs."""
    worst = max(of(found, name) for name in catalogue.concepts(role="mixer"))
    return worst <= of(found, DELETED) - 0.2 and worst < of(found, PAIRS)


@section.claim(
    "Do recurrences keep up with softmax attention on text?",
    paper="Sun et al. 2023, section 3.2; Yang et al. 2023, section 5.1; Gu and Dao 2023, section 4.2",
    measured=lambda found: f"{told(found, *RECURRENT, SOFTMAX)} bits a character",
)
def keeps_up(found):
    """RetNet, gated linear attention, RWKV-4, Mamba and Mamba-2 need at most 0.05 bits a character more than softmax attention."""
    return max(of(found, name) for name in RECURRENT) <= of(found, SOFTMAX) + 0.05


@section.report
def report(found):
    ranked = sorted(found["bits"], key=lambda name: np.mean(of(found, name)))
    where = {name: position(mixer) for name, (mixer, _) in MIXERS.items()}
    rows = []
    for name in ranked:
        numbers, parameters = np.atleast_1d(of(found, name)), int(np.mean(found["parameters"][name]["all"]))
        rows.append([name.replace("_", " "), where.get(name, ""), section.rates.get(name, ""), parameters, float(numbers.mean()), float(numbers.std())])
    section.table("mixers", ["mixer", "positions", "rate", "parameters", "bits a character", "± over seeds"], rows)
    spread = apart(np.mean(found["parameters"][name]["all"]) for name in MIXERS)
    section.values("mixers", {"steps": STEPS, "length": LENGTH, "apart": spread, "softmax": np.mean(of(found, SOFTMAX))})


@section.figure("mixers", size=(6, 5))
def picture(ax, found):
    ranked = sorted(MIXERS, key=lambda name: np.mean(of(found, name)))
    rows = {name.replace("_", " "): of(found, name) for name in ranked}
    dots(ax, rows, at=np.mean(of(found, PAIRS)), xlabel="bits a character, one point a seed; dotted: counted pairs")


if __name__ == "__main__":
    section.main()
