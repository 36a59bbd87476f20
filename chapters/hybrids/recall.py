"""What does a little attention give back to a recurrence?

Arora et al. 2023, arXiv:2312.04927, section 4: attention recalls any number of pairs, a state as many as it is large. Glorioso et al.
2024, arXiv:2405.16712, section 2: one attention block, whose weights are shared by all its calls, mends it. Texts are 2 to 12 pairs of a
key and a value, then the keys in another order, each asking for its value. A single layer of Mamba, Zamba, in which two Mamba layers call
one block, and attention have as many parameters and updates, and a learning rate each; lessons begin with 2 pairs. Beside them stand Mamba
with states four times as large, and the first Mamba after three times as many updates.
"""

# %%
from functools import partial

import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, apart, by_pairs, mean_and_spread, mean_nats, processor_seconds, size_and_time, tried
from minitransformers.reporting.networks import behind_norm, hidden_for, init_the_word_before, network, with_the_word_before
from minitransformers.training.fit import fit
from minitransformers.training.synthetic import few_first, packed_recall
from minitransformers.training.task import Labelled, accuracy
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
PAIRS, WORDS, WIDTH, STEPS, PARAMETERS = (2, 3, 4, 6, 8, 12), 28, 32, 600, 36_000
SMALL, LARGE, LONGER, ZAMBA, ATTENTION = "Mamba, N = 4", "Mamba, N = 16", "Mamba, N = 4, 3 times as long", "Zamba, N = 4", "attention"
KEPT = {SMALL: "256", LARGE: "1,024", LONGER: "256", ZAMBA: "512, and 256 a token", ATTENTION: "64 a token"}  # beside what convolutions keep


# %% Models: mixers behind their norms, then a feed-forward network as wide as makes all models equally large
def in_a_row(*parts):
    return partial(mt.chain, parts=[behind_norm(part) for part in parts])


attention = partial(mt.multi_head_attention, num_heads=1, prepare=with_the_word_before)
BODIES = {
    **{name: in_a_row(mt.mamba, mt.gated_feed_forward) for name in (SMALL, LARGE, LONGER)},
    ZAMBA: partial(mt.zamba, num_heads=2, prepare=with_the_word_before),
    ATTENTION: in_a_row(attention, mt.gated_feed_forward),
}


def fresh_body(rng, name, hidden):
    convolution = init_the_word_before(rng, WIDTH)
    if name == ZAMBA:
        body = mt.init_zamba(rng, WIDTH, num_layers=2, num_heads=2, every=1, d_state=4, d_hidden=hidden)
        return body._replace(shared=[body.shared[0]._replace(prepare=convolution)])
    if name == ATTENTION:
        mixer = mt.init_multi_head_attention(rng, WIDTH, num_heads=1)._replace(prepare=convolution)
    else:
        mixer = mt.init_mamba(rng, WIDTH, d_state=16 if name == LARGE else 4)
    return [(mt.init_rms_norm(rng, WIDTH), part) for part in (mixer, mt.init_gated_feed_forward(rng, WIDTH, d_hidden=hidden))]


draw = partial(packed_recall, vocabulary_size=WORDS)


def trained(name, rng, *, rate):
    """The trained model, as a function of ids, and how many parameters its layers have."""
    body = fresh_body(rng, name, hidden_for(PARAMETERS, partial(fresh_body, rng, name)))
    ends = mt.init_rms_norm(rng, WIDTH), mt.init_linear(rng, WIDTH, WORDS)
    params = [mt.init_embedding(rng, WORDS, WIDTH, std=0.5), body, *ends]
    steps = 5 if section.quick else 3 * STEPS if name == LONGER else STEPS
    known, model = iter(few_first(steps, len(PAIRS))), network(BODIES[name], mt.rms_norm, mt.linear)
    task = Labelled(model, lambda rng: draw(rng, batch_size=16, num_pairs=int(rng.choice(PAIRS[: next(known)]))))
    params = fit(params, task, steps=steps, peak=rate, rng=rng, warmup=1 / 12, floor=0.02)
    return partial(model, params), mt.trees.count_parameters(body)


@section.tuning
def tuning(rng):
    def lost(name, own, *, rate):
        answer, _ = trained(name, own, rate=rate)
        return mean_nats(answer, (draw(own, batch_size=128, num_pairs=pairs) for pairs in PAIRS))

    yield from tried(lost, BODIES, (1e-2,) if section.quick else (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2), rng, alike=False)


@section.experiment
def experiment(rng):
    hold_blas()
    for name in BODIES:
        with processor_seconds() as spent:
            answer, size = trained(name, rng, rate=section.rates[name])
        yield name, "training", {"parameters": size, "seconds": spent()}
        for pairs in PAIRS:
            ids, targets = draw(rng, batch_size=512, num_pairs=pairs)
            yield name, pairs, {"right": accuracy(answer(ids)[0], targets)}


# %%
def told(found, *names, pairs=(4, 8, 12)):
    each = (f"{name}: {', '.join(mean_and_spread(found['right'][name][p]) for p in pairs)}" for name in names)
    return f"right of {', '.join(map(str, pairs))} pairs; " + "; ".join(each)


@section.claim(
    "Does a little attention give a recurrence its recall back?",
    paper="Glorioso et al. 2024, arXiv:2405.16712, section 2: one shared attention block is nearly enough",
    measured=lambda found: told(found, SMALL, ZAMBA, ATTENTION),
)
def given_back(found):
    """After as many updates Mamba is right in at most 0.8 of 12 pairs, Zamba and attention in at least 0.99."""
    right = {name: of[12] for name, of in found["right"].items()}
    return right[SMALL] <= 0.8 and min(right[ZAMBA], right[ATTENTION]) >= 0.99


@section.claim(
    "Does a larger state give it back?",
    paper="Arora et al. 2023, arXiv:2312.04927, section 4: a recurrence recalls as far as its state is large",
    measured=lambda found: told(found, SMALL, LARGE),
)
def larger(found):
    """After as many updates Mamba with N = 16 is right in at least 0.1 more of 12 pairs than with N = 4."""
    return found["right"][LARGE][12] >= found["right"][SMALL][12] + 0.1


@section.claim(
    "Had the small state room for all pairs?",
    paper="Arora et al. 2023, arXiv:2312.04927, section 4: a recurrence recalls as far as its state is large",
    measured=lambda found: told(found, SMALL, LONGER),
)
def room(found):
    """After three times as many updates the same Mamba, N = 4, is right in at least 0.95 of 12 pairs."""
    return found["right"][LONGER][12] >= 0.95


@section.report
def report(found):
    rows = []
    for name in BODIES:
        shares = [mean_and_spread(100 * found["right"][name][pairs], ".1f") for pairs in PAIRS]
        rows.append([name, KEPT[name], *size_and_time(found, name, "training"), *shares])
    rows.append(["any value of the text", "", None, None, *(f"{100 / pairs:.1f}" for pairs in PAIRS)])
    section.table("recall", ["mixer", "numbers kept", "parameters", "processor seconds", *(f"{pairs} pairs, %" for pairs in PAIRS)], rows)
    section.values("recall", {"steps": STEPS, "longer": 3 * STEPS, "keys": WORDS // 2 - 1, "most": PAIRS[-1]})
    section.value("recall.spread", apart(np.mean(of["training"]) for of in found["parameters"].values()))
    for key, name in {"mamba": SMALL, "larger": LARGE, "longer_mamba": LONGER, "zamba": ZAMBA, "attention": ATTENTION}.items():
        section.values(f"recall.{key}", {str(pairs): 100 * np.mean(found["right"][name][pairs]) for pairs in PAIRS})


@section.figure("recall", size=(7.2, 3.2))
def picture(ax, found):
    by_pairs(ax, found["right"], PAIRS)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
