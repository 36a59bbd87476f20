"""How many pairs can a state of fixed size recall?

Arora et al. 2023, arXiv:2312.04927, section 4: given pairs of key and value, and then the keys again in another order, attention names
every value, and a recurrence needs a state that grows with the number of pairs. One layer reads 2 to 16 pairs: attention, linear attention
without features, whose keys have N numbers, and Mamba. A word first meets the one before it in a convolution, or each would have to find out
where a pair begins. Training begins with 2 pairs and adds longer texts until three fifths of its steps.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, by_pairs, listed, mean_nats, tried
from minitransformers.reporting.networks import behind_norm, convolved, network
from minitransformers.training.fit import fit
from minitransformers.training.synthetic import packed_recall
from minitransformers.training.task import Labelled, accuracy
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
PAIRS, ASKED, WORDS, WIDTH, STEPS = (2, 3, 4, 6, 8, 12, 16), (4, 8, 12, 16), 64, 32, 600
START = (3 * WIDTH) ** -0.5                                  # the spread of PyTorch's linear maps: with more, fewer starts learn
ATTENTION, MAMBA, SIZES = "attention", "Mamba, N = 4", (4, 8, 16)
LINEAR = {size: f"linear attention, N = {size}" for size in SIZES}


# %% The mixers: one head, whose queries, keys and values each meet those before them in a convolution
def summed(params, query, key, value, state=None):
    """What linear attention computes without features and without a denominator, and a norm for the size of the sum."""
    (out, state), backward = mt.retention_chunked(query, key, value, state, decay=[1.0], chunk=64)
    normed, norm_backward = mt.rms_norm(params, out)

    def both(dresult):
        dparams, dout = norm_backward(dresult[0])
        return dparams, *backward((dout, dresult[1]))

    return (normed, state), both


def init_convolutions(rng, size):
    return tuple(mt.init_causal_convolution(rng, width, width=2) for width in (size, size, WIDTH))


def init_attention(rng):
    return mt.init_multi_head_attention(rng, WIDTH, num_heads=1, std=START)._replace(core=(init_convolutions(rng, WIDTH), None))


def init_linear_attention(rng, size):
    query, key, value, output = (mt.init_linear(rng, WIDTH, width, std=START) for width in (size, size, WIDTH, WIDTH))
    return mt.RecurrentAttention(query, key, value, output, recurrence=(init_convolutions(rng, size), mt.init_rms_norm(rng, WIDTH)))


linear_attention = partial(mt.recurrent_attention, num_heads=1, recurrence=partial(convolved, inner=summed))
MIXERS = {
    ATTENTION: (init_attention, partial(mt.multi_head_attention, num_heads=1, core=partial(convolved, inner=mt.softmax_attention))),
    **{LINEAR[size]: (partial(init_linear_attention, size=size), linear_attention) for size in SIZES},
    MAMBA: (partial(mt.init_mamba, d_model=WIDTH, d_state=4), mt.mamba),
}
STATE = {ATTENTION: "64 a token", **{LINEAR[size]: size * WIDTH for size in SIZES}, MAMBA: 4 * 2 * WIDTH}


# %% The model and the task
draw = partial(packed_recall, vocabulary_size=WORDS)


def trained(mixer, rng, *, rate):
    """The trained model, as a function of ids. Numbers of pairs are added, evenly, until three fifths of the steps."""
    (init, mix), steps = MIXERS[mixer], 5 if section.quick else STEPS
    words, mixed = mt.init_embedding(rng, WORDS, WIDTH, std=0.5), (mt.init_rms_norm(rng, WIDTH), init(rng))
    params = [words, mixed, mt.init_rms_norm(rng, WIDTH), mt.init_linear(rng, WIDTH, WORDS, std=START)]
    known = iter([min(len(PAIRS), 1 + int(len(PAIRS) * step / (0.6 * steps))) for step in range(steps)])
    model = network(behind_norm(mix), mt.rms_norm, mt.linear)
    task = Labelled(model, lambda rng: draw(rng, batch_size=32, num_pairs=int(rng.choice(PAIRS[: next(known)]))))
    return partial(model, fit(params, task, steps=steps, peak=rate, rng=rng, warmup=1 / 12, floor=0.02))


@section.tuning
def tuning(rng):
    def lost(mixer, own, *, rate):
        return mean_nats(trained(mixer, own, rate=rate), [draw(own, batch_size=256, num_pairs=16)])

    yield from tried(lost, MIXERS, (3e-3, 1e-2) if section.quick else (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2), rng, alike=False)


@section.experiment
def experiment(rng):
    hold_blas()
    for mixer in MIXERS:
        answer = trained(mixer, rng, rate=section.rates[mixer])
        for pairs in ASKED:
            ids, targets = draw(rng, batch_size=256, num_pairs=pairs)
            yield mixer, pairs, {"right": accuracy(answer(ids)[0], targets)}


# %%
@section.claim(
    "Attention recalls every pair, and a fixed state fewer the more there are",
    paper="Arora et al. 2023, arXiv:2312.04927, section 4: attention solves recall at every width, a recurrence as far as its state is large",
    measured=lambda found: f"right of {', '.join(map(str, ASKED))} pairs: {listed(found['right'], (ATTENTION, LINEAR[8]), [*ASKED])}",
)
def all_pairs(found):
    """Attention at least 0.99 at 16 pairs; linear attention with N = 8 at least 0.9 at 4 pairs, and less by 0.05 or more at 16."""
    attention, middle = found["right"][ATTENTION], found["right"][LINEAR[8]]
    return attention[16] >= 0.99 and middle[4] >= 0.9 and middle[16] <= middle[4] - 0.05


@section.claim(
    "A larger state recalls more",
    paper="Arora et al. 2024 (Based), arXiv:2402.18668, section 3: recall grows with the state, whatever the recurrence",
    measured=lambda found: listed(found["right"], LINEAR.values(), [*ASKED]),
)
def larger(found):
    """With N = 16 at least 0.95 at 16 pairs, with N = 4 at most 0.75 and less by 0.2 or more."""
    small, large = (found["right"][LINEAR[size]][16] for size in (4, 16))
    return large >= 0.95 and small <= min(0.75, large - 0.2)


@section.claim(
    "Does the smallest state bind keys to values from every start?",
    paper="no paper: a model that has learned nothing but to name some value of the text is right once in as many pairs",
    measured=lambda found: f"{listed(found['right'], (LINEAR[4], MAMBA), [*ASKED])}; naming any value {', '.join(f'{1 / pairs:.2f}' for pairs in ASKED)}",
)
def binds(found):
    """With N = 4 and after so short a training linear attention and Mamba are right in 0.2 more of 4 pairs than naming any value is."""
    return min(found["right"][mixer][4] for mixer in (LINEAR[4], MAMBA)) >= 1 / 4 + 0.2


@section.report
def report(found):
    rows = []
    for mixer, right in found["right"].items():
        shares = [100 * float(np.mean(right[pairs])) for pairs in ASKED]
        rows.append([mixer, STATE[mixer], section.rates[mixer], *shares, 100 * float(np.max(right[16]))])
    rows.append(["any value of the text", 0, "", *(100 / pairs for pairs in ASKED), 100 / 16])
    section.table("recall", ["mixer", "numbers kept", "rate", *(f"{pairs} pairs, %" for pairs in ASKED), "best start, 16 pairs, %"], rows)
    section.values("recall", {"steps": STEPS, "width": WIDTH})


@section.figure("recall", size=(7.2, 3.2))
def picture(ax, found):
    by_pairs(ax, found["right"], ASKED)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
