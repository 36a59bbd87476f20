"""Trained on 128 characters of real text, tested on 1,024: which positions still read?

Press, Smith and Lewis 2021, arXiv:2108.12409, section 2.2 and figure 1: sinusoidal models get worse soon after the trained
length, rotary ones later, T5's bias later still, ALiBi not at all. The same characters are read in windows of growing length.
"""

# %%
from functools import partial

from minitransformers import LanguageModelConfig, init_language_model, language_model, reporting, trees
from minitransformers.training.fit import fit
from minitransformers.training.text import Corpus
from minitransformers.training.workbench import workbench_task

section = reporting.Section(__file__, __doc__, kind="trained")
TRAINED, LENGTHS, STEPS, DELETED = 128, (128, 256, 512, 1024), 600, "attention deleted"
SCHEMES = ("none", "sinusoidal", "learned", "rope", "alibi", "t5_bias", DELETED)
CHANGES = {
    "sinusoidal": {"scale_embedding": True},                 # as in the paper: waves of size 1 would drown embeddings of 0.1
    "alibi": {"options": {"position": {"learned": False}}},  # the paper's slopes are constants
    DELETED: {"position": "none", "mixer": "sliding_window_attention", "options": {"mixer": {"window": 1}}},  # sees itself alone
}
corpus = Corpus.load(context=TRAINED)
within = Corpus.from_text(corpus.train_text, context=TRAINED)   # rates are chosen on the last part of what is learned from


# %%
def configuration(scheme, context, text=corpus):
    changes = {"position": scheme, **CHANGES.get(scheme, {})}
    return LanguageModelConfig(text.vocabulary.size, context=context, d_model=48, num_layers=2, num_heads=4, tied=False, **changes)


def trained(scheme, rng, *, rate, steps, text=corpus):
    config = configuration(scheme, TRAINED, text)
    params, task = init_language_model(rng, config, std=0.1), workbench_task(text, config, batch_size=4)
    return fit(params, task, steps=3 if section.quick else steps, peak=rate, rng=rng, warmup=0.05, floor=0.1)


def bits_at(params, scheme, length, text=corpus):
    """Bits a character of the whole validation text, cut into windows of this length."""
    model = partial(language_model, params, config=configuration(scheme, length, text))
    return reporting.bits_in_windows(model, text.validation[:2049] if section.quick else text.validation, length)


@section.tuning
def tuning(rng):
    def lost(scheme, own, *, rate):
        return bits_at(trained(scheme, own, rate=rate, steps=STEPS // 2, text=within), scheme, TRAINED, within)

    yield from reporting.tried(lost, SCHEMES, (1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2), rng, alike=False)


@section.experiment
def experiment(rng):
    for scheme in SCHEMES:
        with reporting.processor_seconds() as spent:
            params = trained(scheme, rng, rate=section.rates[scheme], steps=STEPS)
        yield scheme, "training", {"parameters": trees.count_parameters(params), "seconds": spent()}
        for length in LENGTHS[:1] if scheme in ("learned", DELETED) else LENGTHS:  # a table ends with the trained length
            yield scheme, length, {"bits": bits_at(params, scheme, length)}


# %%
def more(found, scheme):
    """Bits a character that are added between the trained length and the longest."""
    return found["bits"][scheme][LENGTHS[-1]] - found["bits"][scheme][TRAINED]


def told(found, *schemes):
    return ", ".join(f"{scheme} {reporting.mean_and_spread(more(found, scheme), '+.2f')}" for scheme in schemes) + " bits from 128 to 1,024"


@section.claim(
    "Sinusoidal and learned positions do equally well",
    paper="Vaswani et al. 2017, arXiv:1706.03762, table 3 row E: nearly identical results",
    measured=lambda found: reporting.listed(found["bits"], ("sinusoidal", "learned", "rope", "none"), TRAINED),
)
def equally(found):
    """At the trained length within 0.1 bits a character of each other."""
    return abs(found["bits"]["sinusoidal"][TRAINED] - found["bits"]["learned"][TRAINED]) < 0.1


@section.claim(
    "On real text sinusoids get worse at lengths they were not trained for",
    paper="Press et al. 2021, arXiv:2108.12409, section 2.2: sinusoidal models get worse soon after the trained length",
    measured=lambda found: told(found, "sinusoidal"),
)
def sinusoids_fail(found):
    """At twice the length at least 0.2 bits a character worse, at eight times at least 0.5."""
    of = found["bits"]["sinusoidal"]
    return of[256] > of[TRAINED] + 0.2 and of[1024] > of[TRAINED] + 0.5


@section.claim(
    "On real text RoPE fails at lengths it was not trained for",
    paper="Press et al. 2021, arXiv:2108.12409, section 2.2 and figure 1: rotary positions worse than T5's bias, T5's bias worse than ALiBi",
    measured=lambda found: told(found, "rope", "t5_bias", "alibi"),
)
def rope_fails(found):
    """At eight times the length RoPE is at least 0.5 bits worse, and adds at least 0.2 more than T5's bias does."""
    return more(found, "rope") > 0.5 and more(found, "rope") > more(found, "t5_bias") + 0.2


@section.claim(
    "On real text ALiBi holds at lengths it was not trained for",
    paper="Press et al. 2021, arXiv:2108.12409, abstract: trained at 1024 and tested at 2048, as good as sinusoids trained at 2048",
    measured=lambda found: f"{told(found, 'alibi')}; {', '.join(reporting.mean_and_spread(y, '.3f') for y in found['bits']['alibi'].values())}",
)
def alibi_holds(found):
    """The same text costs no more bits a character in windows of 1,024 than in windows of 128."""
    return more(found, "alibi") <= 0


@section.claim(
    "On real text ALiBi extrapolates better than T5's bias",
    paper="Press et al. 2021, arXiv:2108.12409, section 2.2 and figure 1: T5's bias worse than ALiBi",
    measured=lambda found: told(found, "t5_bias", "alibi"),
)
def alibi_beats_t5(found):
    """Between 128 and 1,024 T5's bias adds at least 0.1 bits a character more than ALiBi."""
    return more(found, "t5_bias") > more(found, "alibi") + 0.1


@section.report
def report(found):
    rows, pairs = [], reporting.counted_pairs(corpus)
    for scheme, of in found["bits"].items():
        bits = (reporting.mean_and_spread(of[n]) if n in of else None for n in LENGTHS)
        rows.append([scheme, *bits, *reporting.size_and_time(found, scheme, "training")])
        name = scheme.replace(" ", "_")
        section.value(f"text.{name}", of[TRAINED].mean())
        if LENGTHS[-1] in of:
            section.value(f"text.{name}_{LENGTHS[-1]}", of[LENGTHS[-1]].mean())
            section.value(f"long_text.more.{name}", more(found, scheme).mean())
    rows.append(["counted pairs of characters", f"{pairs:.2f}", *[None] * 5])
    section.table("long_text", ["bits a character", *(f"windows of {n:,}" for n in LENGTHS), "parameters", "processor seconds"], rows)
    section.values("long_text", {"trained": TRAINED, "steps": STEPS, "longest": LENGTHS[-1], "pairs": pairs})


@section.figure("long_text")
def picture(ax, found):
    reporting.lines(ax, found["bits"], xlabel=f"length in testing (trained at {TRAINED})", ylabel="bits a character", xscale="log")
    reporting.level(ax, reporting.counted_pairs(corpus), "counted pairs")
    reporting.ticks_at(ax, list(LENGTHS))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
