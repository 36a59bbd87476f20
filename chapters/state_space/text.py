"""Do state spaces model text as well as attention, for as many updates and for as many seconds?

Gu and Dao 2023 (Mamba), arXiv:2312.00752, figure 4, and Dao and Gu 2024 (Mamba-2), arXiv:2405.21060, figure 9: as good as a strong
Transformer of equal size. Here Mamba, Mamba-2, S4D and attention with RoPE stand in the same small language model of Python's language
reference, equally large by the width of their feed-forward networks, each at its own learning rate. An update costs them different times, so
attention is also trained for more updates: about as many processor seconds as Mamba takes.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import LanguageModelConfig, init_language_model, language_model, reporting, trees
from minitransformers.reporting.networks import hidden_for
from minitransformers.training.fit import fit
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.task import Labelled, on_ids
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = reporting.Section(__file__, __doc__, kind="trained")
CONTEXT, WIDTH, STEPS, LONGER, PARAMETERS = 64, 48, 200, 500, 54_000  # an update of Mamba's takes as long as 2.5 of attention's
MAMBA, MAMBA2, S4D, ATTENTION, DELETED = "Mamba", "Mamba-2", "S4D", "attention, RoPE", "attention deleted"
MIXERS = {
    MAMBA: ("mamba", "none", {"d_state": 8}),
    MAMBA2: ("mamba2", "none", {"d_state": 16}),
    S4D: ("s4d", "none", {}),
    ATTENTION: ("multi_head_attention", "rope", {}),
    DELETED: ("sliding_window_attention", "none", {"window": 1}),  # its own position alone
}
MORE = f"{ATTENTION}, {LONGER} updates"
corpus = Corpus.load(context=CONTEXT)


# %%
def config_of(name, hidden):
    mixer, position, options = MIXERS[name]
    return LanguageModelConfig(
        corpus.vocabulary.size, context=CONTEXT, d_model=WIDTH, num_layers=2, num_heads=4, mixer=mixer, position=position, norm="rms_norm",
        options={"mixer": options, "channel": {"d_hidden": hidden}},
    )  # fmt: skip


def trained(name, rng, *, rate, steps):
    """The model as a function of ids, and how many parameters it has. Feed-forward networks make up for what its mixer has fewer than others."""
    config = config_of(name, hidden_for(PARAMETERS, lambda hidden: init_language_model(rng, config_of(name, hidden))))
    params, model = init_language_model(rng, config, std=0.1), partial(language_model, config=config)
    task = Labelled(on_ids(model), partial(corpus.batch, batch_size=8, context=CONTEXT))
    params = fit(params, task, steps=3 if section.quick else steps, peak=rate, rng=rng, warmup=0.1, floor=0.05)
    return partial(model, params), trees.count_parameters(params)


def bits_of(model):
    return reporting.bits_in_windows(model, corpus.validation[:513] if section.quick else corpus.validation, CONTEXT)


@section.tuning
def tuning(rng):
    keep_freed_memory()                                      # a step of training frees and takes the same arrays again and again
    rates = (1e-2,) if section.quick else (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
    yield from reporting.tried(lambda name, rng, *, rate: bits_of(trained(name, rng, rate=rate, steps=STEPS)[0]), MIXERS, rates, rng, alike=False)


@section.experiment
def experiment(rng):
    hold_blas()
    keep_freed_memory()
    for name in (*MIXERS, MORE):
        mixer, steps = (ATTENTION, LONGER) if name == MORE else (name, STEPS)
        with reporting.processor_seconds() as spent:
            model, parameters = trained(mixer, rng, rate=section.rates[mixer], steps=steps)
        yield name, "all", {"bits": bits_of(model), "parameters": parameters, "seconds": spent()}


# %%
def of(found, name, measure="bits"):
    return found[measure][name]["all"]


@section.claim(
    "For as many updates Mamba and Mamba-2 are ahead of attention",
    paper="Gu and Dao 2023, figure 4, and Dao and Gu 2024, figure 9: as good as a strong Transformer of equal size",
    measured=lambda found: f"bits a character after {STEPS} updates: {reporting.listed(found['bits'], (MAMBA, MAMBA2, ATTENTION))}",
)
def per_update(found):
    """Both need at least 0.1 bits a character less."""
    return max(of(found, MAMBA), of(found, MAMBA2)) <= of(found, ATTENTION) - 0.1


@section.claim(
    "And ahead of S4D, which does not select",
    paper="Gu and Dao 2023, arXiv:2312.00752, figure 4: better than the state spaces before it",
    measured=lambda found: reporting.listed(found["bits"], (MAMBA, MAMBA2, S4D)),
)
def over_s4d(found):
    """Both need at least 0.1 bits a character less, equally large and after as many updates."""
    return max(of(found, MAMBA), of(found, MAMBA2)) <= of(found, S4D) - 0.1


@section.claim(
    "Is attention level with Mamba for as many processor seconds?",
    paper="no paper asks it of so short a training; Gu and Dao 2023, section 4.5, compare the speed of writing",
    measured=lambda found: reporting.listed(found["bits"], (MAMBA, MAMBA2, MORE)),
)
def level_with(found):
    """After 500 updates of attention and 200 of Mamba they are within 0.1 bits a character of each other."""
    return abs(of(found, MORE) - of(found, MAMBA)) <= 0.1


@section.claim(
    "500 updates of attention take as many processor seconds as 200 of Mamba",
    paper="no paper: it depends on the machine and on how both are written",
    kind="timed",
    measured=lambda found: ", ".join(f"{name} {np.mean(of(found, name, 'seconds')):.1f}" for name in (MAMBA, MAMBA2, ATTENTION, MORE)) + " processor seconds",
)  # fmt: skip
def seconds(found):
    """They take 0.8 to 1.25 times as many."""
    return 0.8 <= of(found, MORE, "seconds") / of(found, MAMBA, "seconds") <= 1.25


@section.report
def report(found):
    rows, pairs = [], reporting.counted_pairs(corpus)
    for name in sorted(found["bits"], key=lambda name: np.mean(of(found, name))):
        mixer, steps = (ATTENTION, LONGER) if name == MORE else (name, STEPS)
        rows.append([name, section.rates[mixer], steps, int(np.mean(of(found, name, "parameters"))), float(f"{np.mean(of(found, name, 'seconds')):.2g}"),
                     reporting.mean_and_spread(of(found, name))])  # fmt: skip
    rows.append(["counted pairs of characters", None, None, corpus.vocabulary.size**2, None, f"{pairs:.2f}"])
    section.table("text", ["mixer", "rate", "updates", "parameters", "processor seconds", "bits a character"], rows)
    for key, name in (("mamba", MAMBA), ("mamba2", MAMBA2), ("s4d", S4D), ("attention", ATTENTION), ("more", MORE), ("deleted", DELETED)):
        section.value(f"text.bits.{key}", np.mean(of(found, name)))
        section.value(f"text.seconds.{key}", np.mean(of(found, name, "seconds")))
    section.values("text", {"steps": STEPS, "longer": LONGER, "pairs": pairs})


@section.figure("text", size=(6, 3))
def picture(ax, found):
    for name in (*MIXERS, MORE):
        ax.plot(np.atleast_1d(of(found, name, "seconds")), np.atleast_1d(of(found, name)), "o", label=name)
    ax.set(xlabel="processor seconds, one point a seed", ylabel="bits a character", xlim=(0, None))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    reporting.level(ax, reporting.counted_pairs(corpus), "counted pairs")


if __name__ == "__main__":
    section.main()
