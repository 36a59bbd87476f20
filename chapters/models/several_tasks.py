"""Is one model for four tasks as good at one of them as a model that learned it alone?

Raffel et al. 2020, arXiv:1910.10683, section 3.5.2: learning several tasks at once does a little worse on most of them. The T5 of the section on
prefixes, which translates and repeats in two Englishes, puts verses of the 1390s into the English of 2000, behind its prefix; beside it the
Transformer of the translations, about as large, which has learned nothing else. Verses of chapters that neither has seen; three seeds choose them.
"""

# %%
import numpy as np

from minitransformers.models.t5 import t5, t5_step
from minitransformers.models.transformer import transformer, transformer_step
from minitransformers.reporting import Section, bits, mean_and_spread
from minitransformers.reporting.models.translators import LETTERS, NOW, greedy, load_translator, load_two_way, nats, prefix
from minitransformers.reporting.models.verses import chrf, encoded, load_verses
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
VERSES, FOUR, ALONE = 100, "T5, for four tasks", "a Transformer, for this alone"
unknown = [verse for verse in load_verses()[1] if max(len(verse.then), len(verse.now)) <= LETTERS["t5"]]
MODELS = {FOUR: (t5, t5_step, load_two_way(), prefix(NOW)), ALONE: (transformer, transformer_step, load_translator(), [])}


# %%
@section.experiment
def experiment(rng):
    hold_blas()
    chosen = [unknown[i] for i in rng.permutation(len(unknown))[: 8 if section.quick else VERSES]]
    truth = [verse.now for verse in chosen]
    for name, (call, step, params, ahead) in MODELS.items():
        sources = [[*ahead, *encoded(verse.then)] for verse in chosen]
        cost = bits(nats(call, params, sources, [encoded(text) for text in truth]))
        written = greedy(step, params, sources)
        yield name, "all", {"bits": cost / sum(len(text) + 1 for text in truth), "like": chrf(written, truth)}


# %%
def of(found, name, measure="bits"):
    return found[measure][name]["all"]


@section.claim(
    "Is one model for four tasks as good at one of them as a model that learned it alone?",
    paper="Raffel et al. 2020, arXiv:1910.10683, section 3.5.2: learning several tasks at once does a little worse on most",
    measured=lambda found: f"bits a character, old into modern: {mean_and_spread(of(found, FOUR))}; alone {mean_and_spread(of(found, ALONE))}",
)
def as_well(found):
    """At most 0.1 bits a character more than the Transformer that has learned nothing else, in fewer updates."""
    return of(found, FOUR) <= of(found, ALONE) + 0.1


@section.report
def report(found):
    rows = [[name, mean_and_spread(of(found, name)), mean_and_spread(of(found, name, "like"), ".1f")] for name in MODELS]
    section.table("several_tasks", ["old into modern", "bits a character", "chrF"], rows)
    section.value("prefixes.alone", np.mean(of(found, ALONE)))


if __name__ == "__main__":
    section.main()
