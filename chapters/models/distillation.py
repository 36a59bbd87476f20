"""Does a student learn more from its teacher's distributions than from tokens?

Gemma 2 (2024), arXiv:2408.00118, section 3: small models learn from a large one's probabilities in the place of the next token, which is
like training beyond the tokens there are. Hinton et al. 2015, arXiv:1503.02531, section 2: soft targets say more an example. A small Llama
reads the same windows, as many, and learns at each place one of four things: the token that follows; the distribution of a larger model
that has read the text more often; one token drawn from this distribution, which is all that a teacher behind an interface shows; or the
mean of the first two.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import trees
from minitransformers.basics.softmax import softmax
from minitransformers.models.distillation_loss import distillation_loss
from minitransformers.models.llama import init_llama, llama
from minitransformers.reporting import Section, level, lines, mean_and_spread, processor_seconds, ticks_at
from minitransformers.reporting.base import LENGTH, SETTINGS, base_corpus, load_base
from minitransformers.training.fit import fit
from minitransformers.training.language_modelling import LanguageModelling
from minitransformers.training.task import labelled_loss
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas
from minitransformers.training.yardsticks import counted

section = Section(__file__, __doc__, kind="trained")
WIDTH, BATCH, UPDATES = 32, 8, (150, 300, 600)
TEXT, TEACHER, DRAWN, BOTH, DELETED = "the text", "the teacher's distributions", "tokens drawn by the teacher", "half and half", "its own position alone"
KEYS = {TEXT: "text", TEACHER: "distributions", DRAWN: "drawn", BOTH: "both"}
SOURCES = tuple(KEYS)
teacher, corpus = load_base(), base_corpus()
PAIRS = counted(corpus.train_text, corpus.validation_text)["bigram"]
apart = Corpus.from_text(corpus.train_text, context=LENGTH, vocabulary="bytes")  # rates are chosen without the validation part


# %%
class Learning(LanguageModelling):
    """Windows of text whose targets come from one of the four sources."""

    def __init__(self, text, source):
        settings = {**SETTINGS, **({"window": 1} if source == DELETED else {})}
        super().__init__(text, partial(llama, **settings), context=LENGTH, batch_size=BATCH, eval_windows=16 if section.quick else None)
        self.source = source

    def batch(self, rng):
        """Ids, the tokens to learn, and the teacher's logits where they are learned from."""
        ids, targets = super().batch(rng)
        if self.source in (TEXT, DELETED):
            return ids, targets, None
        logits, _ = llama(teacher, ids=ids, **SETTINGS)
        if self.source == DRAWN:
            climbing = np.cumsum(softmax(logits.astype(np.float64))[0], axis=-1)
            return ids, (climbing < rng.random((*ids.shape, 1))).sum(-1).clip(max=logits.shape[-1] - 1), None
        return ids, targets, logits

    def loss(self, params, batch, *, rng):
        """The sum over positions, in nats."""
        ids, targets, theirs = batch
        logits, backward = self.model(params, ids)
        if theirs is None:
            return labelled_loss(logits, backward, targets)
        hard = 0.5 if self.source == BOTH else 0.0
        total, loss_backward = distillation_loss(logits, teacher=theirs, targets=targets, hard=hard, reduction="sum")
        return (total, targets.size), lambda dloss: backward(loss_backward(dloss[0]))


def trained(source, rng, *, text, rate, updates):
    """Its bits a character on text that nobody learned from, and how many parameters the student has."""
    task = Learning(text, source)
    params = init_llama(rng, vocabulary=256, d_model=WIDTH, num_layers=2, num_heads=4, num_kv_heads=2, d_hidden=88, tied=True, std=0.1)
    params = fit(params, task, steps=3 if section.quick else updates, peak=rate, rng=rng, warmup=0.1, floor=0.05)
    return task.evaluate(params)["bits per character"], trees.count_parameters(params)


@section.tuning
def tuning(rng):
    hold_blas()
    for source in (*SOURCES, DELETED):
        for rate in (2e-2,) if section.quick else (5e-3, 1e-2, 2e-2, 4e-2):
            own = np.random.default_rng(rng.integers(2**32))
            yield source, rate, {"loss": trained(source, own, text=apart, rate=rate, updates=UPDATES[0])[0]}


@section.experiment
def experiment(rng):
    hold_blas()
    for source in (*SOURCES, DELETED):
        for updates in UPDATES[:1] if section.quick or source == DELETED else UPDATES:
            start = np.random.default_rng(rng.integers(2**32))
            with processor_seconds() as spent:
                measured, size = trained(source, start, text=corpus, rate=section.rates[source], updates=updates)
            yield source, updates, {"bits": measured, "seconds": spent(), "parameters": size}
    yield "teacher", 0, {"bits": Learning(corpus, TEXT).evaluate(teacher)["bits per character"]}


# %%
def told(found, *sources):
    each = (f"{source} {', '.join(mean_and_spread(found['bits'][source][updates]) for updates in UPDATES)}" for source in sources)
    return f"bits a character after {', '.join(map(str, UPDATES))} updates: {'; '.join(each)}"


@section.claim(
    "Do the teacher's distributions teach more than the text itself?",
    paper="Gemma 2 (2024), arXiv:2408.00118, section 3: instead of the next token, its distribution under a larger model",
    measured=lambda found: told(found, TEXT, TEACHER, BOTH),
)
def distributions(found):
    """After each of the three numbers of updates at least 0.03 bits a character fewer."""
    return all(found["bits"][TEACHER][updates] <= found["bits"][TEXT][updates] - 0.03 for updates in UPDATES)


@section.claim(
    "Do they teach more than as many tokens that the teacher draws?",
    paper="Hinton et al. 2015, arXiv:1503.02531, section 2: soft targets give less variance in the gradient",
    measured=lambda found: told(found, DRAWN, TEACHER),
)
def draws(found):
    """After each of the three numbers of updates at least 0.03 bits a character fewer."""
    return all(found["bits"][TEACHER][updates] <= found["bits"][DRAWN][updates] - 0.03 for updates in UPDATES)


@section.report
def report(found):
    rows = []
    for source in SOURCES:
        of, most = found["bits"][source], max(found["bits"][source])
        size, seconds = (np.mean(found[measure][source][most]) for measure in ("parameters", "seconds"))
        cells = [mean_and_spread(of[updates]) if updates in of else None for updates in UPDATES]
        rows.append([source, f"{section.rates[source]:g}", int(size), float(f"{seconds:.1f}"), *cells])
        section.values("distillation." + KEYS[source], {f"n{updates}": np.mean(bits) for updates, bits in of.items()})
    deleted = found["bits"][DELETED][UPDATES[0]]
    rows.append([f"{DELETED}, the text", f"{section.rates[DELETED]:g}", None, None, mean_and_spread(deleted), None, None])
    rows.append(["the teacher itself", "", trees.count_parameters(teacher), None, *[f"{np.mean(found['bits']['teacher'][0]):.2f}"] * 3])
    rows.append(["counted pairs", "", None, None, *[f"{PAIRS:.2f}"] * 3])
    section.table("distillation", ["learns from", "rate", "parameters", "processor seconds", *(f"{n} updates" for n in UPDATES)], rows)
    section.value("distillation.teacher", np.mean(found["bits"]["teacher"][0]))


@section.figure("distillation", size=(5.6, 3.2))
def picture(ax, found):
    lines(ax, {source: found["bits"][source] for source in SOURCES}, xlabel="updates", ylabel="bits a character", xscale="log")
    ticks_at(ax, list(UPDATES))
    level(ax, PAIRS, "counted pairs")
    ax.legend(fontsize=8)


if __name__ == "__main__":
    section.main()
