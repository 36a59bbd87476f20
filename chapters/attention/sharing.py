"""A trained model must share its keys between heads: from where does it start best?

Ainslie et al. 2023, arXiv:2305.13245, sections 2.1 and 3.3: the mean of a group's heads before the first head before random ones, and with 5 %
of the training the model comes back. Four heads of a language model on Python's language reference become two, in three ways, each
trained on at a learning rate of its own.
"""

# %%
import numpy as np

from minitransformers import LanguageModelConfig, Linear, init_language_model, trees
from minitransformers.attention.grouped_query_attention import pool_heads
from minitransformers.reporting import Section, counted_pairs, listed, mean_and_spread, processor_seconds, size_and_time
from minitransformers.training.fit import fit
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas
from minitransformers.training.workbench import workbench_task

section = Section(__file__, __doc__, kind="trained")
CONTEXT, WIDTH, HEADS, SHARED, STEPS, MORE = 64, 32, 4, 2, 250, 12  # more: 5 % of the steps
FOUR, DELETED, WAYS = "four heads of keys", "its own position alone", ("mean", "first", "random")
MIXERS = {
    FOUR: {},
    DELETED: {"mixer": "sliding_window_attention", "options": {"mixer": {"window": 1}}},
    SHARED: {"mixer": "grouped_query_attention", "options": {"mixer": {"num_kv_heads": SHARED}}},
}
corpus = Corpus.load(context=CONTEXT)


# %%
def task_of(name):
    """The task of a model, and its configuration."""
    sizes = {"context": CONTEXT, "d_model": WIDTH, "num_layers": 2, "num_heads": HEADS, "position": "rope"}
    config = LanguageModelConfig(corpus.vocabulary.size, **sizes, **MIXERS[name])
    return workbench_task(corpus, config, batch_size=8, eval_windows=16 if section.quick else 128), config


def bits_of(name, params):
    return task_of(name)[0].evaluate(params)["bits per character"]


def trained(name, rng, *, rate):
    task, config = task_of(name)
    steps = 5 if section.quick else STEPS
    return fit(init_language_model(rng, config, std=0.1), task, steps=steps, peak=rate, rng=rng, floor=0.05)


def converted(params, how, rng):
    """The same model with two heads of keys and values."""

    def mixer(old):
        new = pool_heads(old, num_heads=HEADS, num_kv_heads=SHARED)
        return new if how == "mean" else new._replace(key=other(old.key), value=other(old.value))

    def other(part):
        """The first head of each group, or as large random ones."""
        first = Linear(*(a.reshape(*a.shape[:-1], SHARED, HEADS // SHARED, -1)[..., 0, :].reshape(*a.shape[:-1], -1) for a in part))
        if how == "first":
            return first
        return first._replace(weight=(part.weight.std() * rng.standard_normal(first.weight.shape)).astype(first.weight.dtype))

    return params._replace(blocks=[block._replace(mixer=mixer(block.mixer)) for block in params.blocks])


def trained_on(params, rng, *, rate):
    return fit(params, task_of(SHARED)[0], steps=2 if section.quick else MORE, peak=rate, rng=rng)


@section.tuning
def tuning(rng):
    hold_blas()
    rates = (1e-2,) if section.quick else (1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2)
    for name in (FOUR, DELETED):
        for rate in rates:
            params = trained(name, np.random.default_rng(section.seed + 1000), rate=rate)
            yield name, rate, {"loss": bits_of(name, params)}
            if name == FOUR and rate == 1e-2:
                kept = params
    for how in WAYS:
        start = converted(kept, how, rng)
        for rate in rates:
            yield how, rate, {"loss": bits_of(SHARED, trained_on(start, np.random.default_rng(section.seed + 1001), rate=rate))}


@section.experiment
def experiment(rng):
    hold_blas()
    for name in (DELETED, FOUR):
        with processor_seconds() as spent:
            params = trained(name, rng, rate=section.rates[name])
        yield name, "end", {"bits": bits_of(name, params), "parameters": trees.count_parameters(params), "seconds": spent()}
    batches = rng.integers(2**32)                            # all three read the same
    for how in WAYS:
        start = converted(params, how, rng)
        with processor_seconds() as spent:
            more = trained_on(start, np.random.default_rng(batches), rate=section.rates[how])
        yield how, "at once", {"bits": bits_of(SHARED, start)}
        yield how, "end", {"bits": bits_of(SHARED, more), "parameters": trees.count_parameters(more), "seconds": spent()}


# %%
@section.claim(
    "Trained heads are a better start for shared keys than random ones",
    paper="Ainslie et al. 2023, arXiv:2305.13245, section 3.3: heads that keep what was learned do better than new ones",
    measured=lambda found: f"{mean_and_spread(found['bits'][FOUR]['end'])} bits before; "
    f"at once {listed(found['bits'], WAYS, 'at once')}; then {listed(found['bits'], WAYS, 'end')}",
)
def better_than_random(found):
    """The mean and the first head both need at least 0.1 bits a character less than random ones, at once and after 5 % more training."""
    return all(max(found["bits"][how][when] for how in ("mean", "first")) <= found["bits"]["random"][when] - 0.1 for when in ("at once", "end"))


@section.claim(
    "Is the mean of a group's heads the best start, at once?",
    paper="Ainslie et al. 2023, arXiv:2305.13245, sections 2.1 and 3.3: mean pooling before the first head before random",
    measured=lambda found: listed(found["bits"], ("mean", "first"), "at once"),
)
def mean_at_once(found):
    """Before any more training the mean needs at least 0.1 bits a character less than the first head."""
    return found["bits"]["mean"]["at once"] <= found["bits"]["first"]["at once"] - 0.1


@section.claim(
    "Is the mean of a group's heads the best start, after 5 % more training?",
    paper="Ainslie et al. 2023, arXiv:2305.13245, section 3.3: after uptraining, mean pooling before the first head before random",
    measured=lambda found: listed(found["bits"], ("mean", "first"), "end"),
)
def mean_in_the_end(found):
    """After 5 % more training the mean needs at least 0.03 bits a character less than the first head."""
    return found["bits"]["mean"]["end"] <= found["bits"]["first"]["end"] - 0.03


@section.report
def report(found):
    rows = []
    for name in (*WAYS, FOUR, DELETED):
        of = found["bits"][name]
        at_once = mean_and_spread(of["at once"]) if name in WAYS else None
        rows.append([name, at_once, mean_and_spread(of["end"]), section.rates[name], *size_and_time(found, name, "end")])
    rows.append(["counted pairs of characters", None, f"{counted_pairs(corpus):.2f}", *[None] * 3])
    columns = ["key heads from", "bits a character at once", "after training", "rate", "parameters", "processor seconds"]
    section.table("uptraining", columns, rows)
    for how in WAYS:
        section.values(f"uptraining.{how}", {"before": found["bits"][how]["at once"].mean(), "after": found["bits"][how]["end"].mean()})
    wins = (found["bits"]["mean"]["at once"] < found["bits"]["first"]["at once"]).sum()
    section.values("uptraining", {"original": found["bits"][FOUR]["end"].mean(), "seeds": len(found["bits"][FOUR]["end"]), "mean_wins": int(wins)})


if __name__ == "__main__":
    section.main()
