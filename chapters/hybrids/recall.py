"""What does a little attention give back to a recurrence?

Arora et al. 2023, arXiv:2312.04927, section 4: attention recalls any number of pairs, a state as many as it is large. Glorioso et al.
2024, arXiv:2405.16712, section 2: one attention block, whose weights are shared by all its calls, mends it. Texts are 2 to 12 pairs of a
key and a value, then the keys in another order, and at each its value is asked for. Mamba, Zamba, in which two Mamba layers call one
block, and attention alone have as many parameters, a learning rate each, and as many updates; lessons begin with 2 pairs. Beside
them stand Mamba with states four times as large, and the first Mamba once more, with three times as many updates. Mamba is a single layer,
which learns sooner than what has something below it.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.prepare import on_both
from minitransformers.basics.causal_convolution import causal_convolution, init_causal_convolution
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.basics.gated_feed_forward import gated_feed_forward, init_gated_feed_forward
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.foundation import trees
from minitransformers.hybrids.zamba import init_zamba, zamba
from minitransformers.norms.rms_norm import init_rms_norm, rms_norm
from minitransformers.positional.rope_fast import rope_fast
from minitransformers.reporting import Section, lines, mean_and_spread, processor_seconds
from minitransformers.state_space.mamba import init_mamba, mamba
from minitransformers.training.fit import fit
from minitransformers.training.synthetic import associative_recall
from minitransformers.training.task import Labelled, accuracy, labelled_loss
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
PAIRS, WORDS, WIDTH, STEPS, PARAMETERS = (2, 3, 4, 6, 8, 12), 28, 32, 600, 36_000
SMALL, LARGE, LONGER, ZAMBA, ATTENTION = "Mamba, N = 4", "Mamba, N = 16", "Mamba, N = 4, 3 times as long", "Zamba, N = 4", "attention"
KEPT = {SMALL: "256", LARGE: "1,024", LONGER: "256", ZAMBA: "512, and 256 a token", ATTENTION: "64 a token"}  # beside what convolutions keep
rotated = on_both(rope_fast)


# %% Models: mixers behind their norms, then a feed-forward network as wide as makes all models equally large
def with_the_word_before(params, query, key, *, positions=None):
    """Attention's keys meet those before them, as Mamba's inputs do in its own convolution, so that a value is found by its key."""
    key, convolution_backward = causal_convolution(params, key)
    turned, rotated_backward = rotated(None, query, key, positions=positions)

    def backward(dturned):
        _, dquery, dkey = rotated_backward(dturned)
        dparams, dkey, _ = convolution_backward(dkey)
        return dparams, dquery, dkey

    return turned, backward


def behind_norms(*parts):
    """Parts one after the other, each behind a norm and added to what it reads."""
    return partial(chain, parts=[partial(residual, part=partial(chain, parts=(rms_norm, part))) for part in parts])


attention = partial(multi_head_attention, num_heads=1, prepare=with_the_word_before)
BODIES = {
    **{name: behind_norms(mamba, gated_feed_forward) for name in (SMALL, LARGE, LONGER)},
    ZAMBA: partial(zamba, num_heads=2, prepare=with_the_word_before),
    ATTENTION: behind_norms(attention, gated_feed_forward),
}


def fresh_body(rng, name, hidden):
    convolution = init_causal_convolution(rng, WIDTH, width=2)
    if name == ZAMBA:
        body = init_zamba(rng, WIDTH, num_layers=2, num_heads=2, every=1, d_state=4, d_hidden=hidden)
        return body._replace(shared=[body.shared[0]._replace(prepare=convolution)])
    if name == ATTENTION:
        mixer = init_multi_head_attention(rng, WIDTH, num_heads=1)._replace(prepare=convolution)
    else:
        mixer = init_mamba(rng, WIDTH, d_state=16 if name == LARGE else 4)
    return [(init_rms_norm(rng, WIDTH), part) for part in (mixer, init_gated_feed_forward(rng, WIDTH, d_hidden=hidden))]


def fresh(rng, name):
    """Parameters, and how many they are."""
    one, two = (trees.count_parameters(fresh_body(rng, name, hidden)) for hidden in (1, 2))
    body = fresh_body(rng, name, 1 + round((PARAMETERS - one) / (two - one)))
    ends = init_rms_norm(rng, WIDTH), init_linear(rng, WIDTH, WORDS)
    return [init_embedding(rng, WORDS, WIDTH, std=0.5), body, *ends], trees.count_parameters(body)


def model(params, ids, *, name):
    words, words_backward = embedding(params[0], ids=ids)
    logits, body_backward = chain(params[1:], words, parts=(BODIES[name], rms_norm, linear))

    def backward(dlogits):
        dbody, dwords = body_backward(dlogits)
        return [words_backward(dwords), *dbody]

    return logits, backward


# %% The task, and lessons in it
def draw(rng, *, pairs, batch_size=16):
    """Pairs, then their keys in another order: texts of three tokens a pair."""
    ids_and_targets = associative_recall(
        rng, batch_size=batch_size, length=4 * pairs, num_pairs=pairs, vocabulary_size=WORDS, power=1.0, random_filler=False
    )  # fmt: skip
    kept = np.concatenate([np.arange(2 * pairs), np.arange(2 * pairs, 4 * pairs, 2)])  # every place asks: what is between is left out
    return tuple(a[:, kept] for a in ids_and_targets)


def trained(name, rng, *, rate):
    """The trained model, as a function of ids, and how many parameters its layers have. Lessons: 2 pairs for three tenths of the steps, then
    more, evenly, until seven tenths.
    """
    steps = 5 if section.quick else 3 * STEPS if name == LONGER else STEPS
    done = np.arange(steps) / steps
    known = iter(1 + np.clip(np.ceil((done - 0.3) / 0.4 * (len(PAIRS) - 1)), 0, len(PAIRS) - 1).astype(int))
    params, size = fresh(rng, name)
    task = Labelled(partial(model, name=name), lambda rng: draw(rng, pairs=int(rng.choice(PAIRS[: next(known)]))))
    return partial(model, fit(params, task, steps=steps, peak=rate, rng=rng, warmup=1 / 12, floor=0.02), name=name), size


@section.tuning
def tuning(rng):
    hold_blas()
    for name in BODIES:
        for rate in (1e-2,) if section.quick else (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2):
            own = np.random.default_rng(rng.integers(2**32))
            yield name, rate, {"loss": nats(trained(name, own, rate=rate)[0], own)}


def nats(answer, rng):
    """Nats a question, a mean over the numbers of pairs."""
    losses = []
    for pairs in PAIRS:
        ids, targets = draw(rng, pairs=pairs, batch_size=128)
        (total, count), _ = labelled_loss(*answer(ids), targets)
        losses.append(float(total) / count)
    return np.mean(losses)


@section.experiment
def experiment(rng):
    hold_blas()
    for name in BODIES:
        with processor_seconds() as spent:
            answer, size = trained(name, rng, rate=section.rates[name])
        yield name, "training", {"parameters": size, "seconds": spent()}
        for pairs in PAIRS:
            ids, targets = draw(rng, pairs=pairs, batch_size=512)
            yield name, pairs, {"right": accuracy(answer(ids)[0], targets)}


# %%
def told(found, *names, pairs=(4, 8, 12)):
    each = (f"{name}: {', '.join(mean_and_spread(found['right'][name][p]) for p in pairs)}" for name in names)
    return f"right of {', '.join(map(str, pairs))} pairs; " + "; ".join(each)


@section.claim(
    "A little attention gives a recurrence its recall back",
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
        right, size, seconds = found["right"][name], *(np.mean(found[measure][name]["training"]) for measure in ("parameters", "seconds"))
        shares = [mean_and_spread(100 * right[pairs], ".1f") for pairs in PAIRS]
        rows.append([name, KEPT[name], int(size), float(f"{seconds:.1f}"), *shares])
    rows.append(["any value of the text", "", None, None, *(f"{100 / pairs:.1f}" for pairs in PAIRS)])
    section.table("recall", ["mixer", "numbers kept", "parameters", "processor seconds", *(f"{pairs} pairs, %" for pairs in PAIRS)], rows)
    sizes = [np.mean(found["parameters"][name]["training"]) for name in BODIES]
    spread = 100 * (max(sizes) / min(sizes) - 1)
    section.values("recall", {"steps": STEPS, "longer": 3 * STEPS, "spread": spread, "keys": WORDS // 2 - 1, "most": PAIRS[-1]})
    for key, name in {"mamba": SMALL, "larger": LARGE, "longer_mamba": LONGER, "zamba": ZAMBA, "attention": ATTENTION}.items():
        section.values(f"recall.{key}", {str(pairs): 100 * np.mean(found["right"][name][pairs]) for pairs in PAIRS})


@section.figure("recall", size=(7.2, 3.2))
def picture(ax, found):
    lines(ax, found["right"])
    ax.plot(PAIRS, [1 / pairs for pairs in PAIRS], "--", color="#808080", label="any value of the text")
    ax.set(xlabel="pairs", ylabel="right", ylim=(0, 1.05), xticks=PAIRS)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
