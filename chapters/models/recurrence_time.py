"""What does it cost a recurrence that each position waits for the one before it?

Vaswani et al. 2017, arXiv:1706.03762, section 4 and table 1: a recurrent layer takes as many dependent steps as there are positions,
attention a fixed number; attention's arithmetic grows with the square of the length. A GRU and two blocks of attention, as large as each
other, read whole texts of growing length and write one character after them, on one thread. Matrix products that wait for one another
are counted as they happen.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, lines, paired_times, ticks_at
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
LENGTHS, VOCABULARY, WIDTH, HIDDEN = (64, 128, 256, 512, 1024), 103, 48, 108
GRU, TRANSFORMER = "GRU", "Transformer"
RELU = {"channel": {"activation": "relu"}}                   # an activation that keeps the count: GELU writes into an array of its own


# %% read(ids, state) -> logits, state; state None at the start of a text
def transformer(rng):
    config = mt.LanguageModelConfig(VOCABULARY, LENGTHS[-1], WIDTH, num_layers=2, position="rope", norm="rms_norm", options=RELU)
    params = mt.init_language_model(rng, config, std=0.1)
    return params, lambda params, ids: mt.language_model(params, ids=ids, config=config)[0], partial(mt.language_model_step, config=config)


def recurrent(rng):
    table = (0.1 * rng.standard_normal((VOCABULARY, WIDTH))).astype(np.float32)
    cell, down = mt.init_gru(rng, WIDTH, HIDDEN), mt.init_linear(rng, HIDDEN, WIDTH)
    params = table, mt.init_rms_norm(rng, WIDTH), cell, down, mt.init_rms_norm(rng, WIDTH)

    def step(params, ids, state):
        table, norm, cell, down, last = params
        hidden = table[ids]
        (out, state), _ = mt.gru(cell, mt.rms_norm(norm, hidden)[0], state)
        return mt.rms_norm(last, hidden + mt.linear(down, out)[0])[0] @ table.T, state

    return params, lambda params, ids: step(params, ids, None)[0], step


class Waiting(np.ndarray):
    """An array that knows how many matrix products had to be done one after the other before it was there."""

    def __array_finalize__(self, source):
        self.after = getattr(source, "after", 0)

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **settings):
        after = max(getattr(array, "after", 0) for array in (*inputs, *out)) + (ufunc is np.matmul)
        inputs, targets = ([np.asarray(a) if isinstance(a, Waiting) else a for a in arrays] for arrays in (inputs, out))
        result = getattr(ufunc, method)(*inputs, **settings, **({"out": tuple(targets)} if out else {}))
        result = out[0] if out and isinstance(out[0], Waiting) else np.asarray(result).view(Waiting)
        result.after = after
        return result


@section.experiment
def experiment(rng):
    hold_blas()
    made = {GRU: recurrent(rng), TRANSFORMER: transformer(rng)}
    whole, writing = {}, {}
    for n in LENGTHS[:2] if section.quick else LENGTHS:
        ids = rng.integers(VOCABULARY, size=(1, n))
        for name, (params, read, step) in made.items():
            logits, state = step(mt.trees.map(lambda array: array.view(Waiting), params), ids, None)
            yield name, n, {"chained": (state if name == GRU else logits).after}  # outputs of a GRU are copies of its states
            _, before = step(params, ids[:, :-1], None)
            whole[name, n], writing[name, n] = partial(read, params, ids), partial(step, params, ids[:, -1:], before)
    for measure, calls in (("whole", whole), ("writing", writing)):
        for (name, n), ratio in paired_times(calls, rounds=2 if section.quick else 25).items():
            yield name, n, {measure: ratio.median / (n / LENGTHS[0] if measure == "whole" else 1)}


# %%
def single(found, measure, name):
    """The numbers of the one seed there is, by length."""
    return {n: float(np.ravel(of)[0]) for n, of in found[measure][name].items()}


def told(found, measure, form):
    return "; ".join(f"{name} " + ", ".join(f"{x:{form}}" for x in single(found, measure, name).values()) for name in (GRU, TRANSFORMER))


@section.claim(
    "In a recurrence every position waits for the one before it, in attention none does",
    paper="Vaswani et al. 2017, arXiv:1706.03762, table 1: n sequential operations, or a fixed number",
    kind="exact",
    measured=lambda found: f"products that wait for one another, texts of {', '.join(map(str, LENGTHS))}: {told(found, 'chained', '.0f')}",
)
def waits(found):
    """Two products a position up to the GRU's last state; seven a layer and the head up to the Transformer's logits, at every length."""
    gru_chains, chains = single(found, "chained", GRU), single(found, "chained", TRANSFORMER)
    return all(chain == 2 * n for n, chain in gru_chains.items()) and all(chain == 15 for chain in chains.values())


@section.claim(
    "A GRU reads a long text at the same pace as a short one",
    paper="Vaswani et al. 2017, arXiv:1706.03762, table 1: n d^2 for a recurrent layer",
    measured=lambda found: f"time a character, the GRU's at {LENGTHS[0]} = 1: {told(found, 'whole', '.2f')}",
)
def even(found):
    """The longest time a character is at most 2.5 times the shortest."""
    times = single(found, "whole", GRU).values()
    return max(times) <= 2.5 * min(times)


@section.claim(
    "Does a Transformer's time a character grow with the text?",
    paper="Vaswani et al. 2017, arXiv:1706.03762, table 1: n^2 d for a layer of attention",
    measured=lambda found: f"time a character, the GRU's at {LENGTHS[0]} = 1: {told(found, 'whole', '.2f')}",
)
def grows(found):
    """At 512 characters at least 2.5 times that at 64."""
    times = single(found, "whole", TRANSFORMER)
    return times[512] >= 2.5 * times[64]


@section.claim(
    "Does waiting make the GRU slower on one thread?",
    paper="Vaswani et al. 2017, arXiv:1706.03762, section 1: sequential computation precludes parallelization within training examples",
    measured=lambda found: f"time a character, the GRU's at {LENGTHS[0]} = 1: {told(found, 'whole', '.2f')}",
)
def slower(found):
    """A whole text takes the GRU at least 1.5 times as long as the Transformer, at each length."""
    ours, theirs = single(found, "whole", GRU), single(found, "whole", TRANSFORMER)
    return all(ours[n] >= 1.5 * theirs[n] for n in ours)


@section.claim(
    "Does a GRU write the next character in a third of the time?",
    paper="Katharopoulos et al. 2020, arXiv:2006.16236, section 3.4: a recurrence writes at a constant cost, a cache grows",
    measured=lambda found: f"time of the next character, the GRU's after {LENGTHS[0]} = 1: {told(found, 'writing', '.1f')}",
)
def writes(found):
    """At most a third of the Transformer's, which has its cache, after each length."""
    ours, theirs = single(found, "writing", GRU), single(found, "writing", TRANSFORMER)
    return all(ours[n] <= theirs[n] / 3 for n in ours)


@section.report
def report(found):
    lengths = list(found["whole"][GRU])
    labels = {"chained": "products that wait for one another", "whole": "time a character, whole text", "writing": "time of the next character"}
    rows = []
    for measure, label in labels.items():
        for name in (GRU, TRANSFORMER):
            numbers = single(found, measure, name).values()
            rows.append([f"{name}, {label}", *(int(x) if measure == "chained" else float(f"{x:.2f}") for x in numbers)])
    section.table("recurrence_time", ["characters", *map(str, lengths)], rows)
    for measure in ("whole", "writing"):
        ours, theirs = single(found, measure, GRU), single(found, measure, TRANSFORMER)
        section.values(f"recurrence_time.{measure}", {f"of_{n}": theirs[n] / ours[n] for n in lengths})


@section.figure("recurrence_time", size=(7.6, 3), ncols=2)
def picture(axes, found):
    for ax, measure, label in zip(axes, ("whole", "writing"), ("a character of whole texts", "the next character"), strict=True):
        lines(ax, found[measure], xlabel="characters", ylabel="time, the GRU's first = 1", title=label, xscale="log")
        ax.set_ylim(0)
        ticks_at(ax, list(found[measure][GRU]))
    axes[0].legend()


if __name__ == "__main__":
    section.main()
