"""Does a window beside a recurrence recall more than either alone?

Ren et al. 2024, arXiv:2406.07522, section 3.3: Samba, in which Mamba and windows of attention alternate, recalls passkeys far beyond its
windows. Texts are pairs of a key and a value, and then the keys, at once or after a gap that no window reaches over. Mamba's state is small,
a number a channel, and a window sees 4 positions. One Mamba layer, two layers of windows, and
Samba, a layer of each, have as many parameters, as many updates and a learning rate each. Lessons begin with 2 pairs, near and far
by turns of chance. A second Samba is first taught what is far, and then both.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.attention.prepare import on_both
from minitransformers.attention.sliding_window_attention import init_sliding_window_attention, sliding_window_attention
from minitransformers.basics.causal_convolution import causal_convolution, init_causal_convolution
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.basics.gated_feed_forward import gated_feed_forward, init_gated_feed_forward
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.foundation import trees
from minitransformers.norms.rms_norm import init_rms_norm, rms_norm
from minitransformers.positional.rope_fast import rope_fast
from minitransformers.reporting import Section, lines, mean_and_spread, processor_seconds
from minitransformers.state_space.mamba import init_mamba, mamba
from minitransformers.training.fit import fit
from minitransformers.training.synthetic import associative_recall
from minitransformers.training.task import IGNORED, Labelled, accuracy, labelled_loss
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
PAIRS, WORDS, WIDTH, PARAMETERS, STEPS = (2, 3, 4, 6), 16, 32, 16_000, 800
WINDOW, GAP = 4, 8                                           # two windows reach 6 positions back, the gap alone is 8
MAMBA, WINDOWS, SAMBA, FAR_FIRST = "Mamba", "windows", "Samba", "Samba, far first"
NEAR, FAR = "near", "far"                                    # how far the keys stand from the pairs: next to them, or behind the gap
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


def init_window(rng):
    params = init_sliding_window_attention(rng, WIDTH, num_heads=1)
    return params._replace(prepare=init_causal_convolution(rng, WIDTH, width=2))


state = partial(init_mamba, d_model=WIDTH, d_state=1), mamba
window = init_window, partial(sliding_window_attention, num_heads=1, window=WINDOW, prepare=with_the_word_before)
MIXERS = {MAMBA: [state], WINDOWS: [window, window], SAMBA: [state, window], FAR_FIRST: [state, window]}


def fresh_body(rng, name, hidden):
    parts = [*(init(rng) for init, _ in MIXERS[name]), init_gated_feed_forward(rng, WIDTH, d_hidden=hidden)]
    return [(init_rms_norm(rng, WIDTH), part) for part in parts]


def fresh(rng, name):
    """Parameters, and how many the layers have."""
    one, two = (trees.count_parameters(fresh_body(rng, name, hidden)) for hidden in (1, 2))
    body = fresh_body(rng, name, 1 + round((PARAMETERS - one) / (two - one)))
    ends = init_rms_norm(rng, WIDTH), init_linear(rng, WIDTH, WORDS)
    return [init_embedding(rng, WORDS, WIDTH, std=0.5), *body, *ends], trees.count_parameters(body)


def model(params, ids, *, name):
    parts = [*(mixer for _, mixer in MIXERS[name]), gated_feed_forward]
    layers = [partial(residual, part=partial(chain, parts=(rms_norm, part))) for part in parts]
    words, words_backward = embedding(params[0], ids=ids)
    logits, body_backward = chain(params[1:], words, parts=(*layers, rms_norm, linear))

    def backward(dlogits):
        dbody, dwords = body_backward(dlogits)
        return [words_backward(dwords), *dbody]

    return logits, backward


# %% The task, and lessons in it
def draw(rng, *, pairs, where, batch_size=16):
    """Pairs, a gap of token 0 if they are far, and the keys in another order."""
    drawn = associative_recall(
        rng, batch_size=batch_size, length=4 * pairs, num_pairs=pairs, vocabulary_size=WORDS, power=1.0, random_filler=False
    )  # fmt: skip
    gap = np.zeros((batch_size, GAP if where == FAR else 0), int)
    between = (gap, gap + IGNORED)
    return tuple(np.concatenate([a[:, : 2 * pairs], b, a[:, 2 * pairs :: 2]], axis=1) for a, b in zip(drawn, between, strict=True))


def lessons(name, steps):
    """For every step the numbers of pairs to draw from, and the distances: 2 pairs for three tenths of the steps, then more, evenly, until
    seven tenths; near or far.
    """
    for done in np.arange(steps) / steps:
        more = np.ceil((done - 0.3) / 0.4 * (len(PAIRS) - 1))
        yield PAIRS[: 1 + int(np.clip(more, 0, len(PAIRS) - 1))], [FAR] if name == FAR_FIRST and done < 0.3 else [NEAR, FAR]


def trained(name, rng, *, rate):
    """The trained model, as a function of ids, and how many parameters its layers have."""
    steps = 5 if section.quick else STEPS
    lesson, (params, size) = lessons(name, steps), fresh(rng, name)

    def batch(rng):
        pairs, where = map(rng.choice, next(lesson))
        return draw(rng, pairs=int(pairs), where=where)

    params = fit(params, Labelled(partial(model, name=name), batch), steps=steps, peak=rate, rng=rng, warmup=1 / 12, floor=0.02)
    return partial(model, params, name=name), size


@section.tuning
def tuning(rng):
    hold_blas()
    for name in MIXERS:
        for rate in (1e-2,) if section.quick else (2.5e-3, 5e-3, 1e-2, 2e-2):
            starts = [np.random.default_rng(seed) for seed in rng.integers(2**32, size=1 if section.quick else 2)]  # one may be lucky
            yield name, rate, {"loss": np.mean([nats(trained(name, own, rate=rate)[0], own) for own in starts])}


def nats(answer, rng):
    """Nats a question, a mean over the numbers of pairs, near and far."""
    losses = []
    for where in (NEAR, FAR):
        for pairs in PAIRS:
            ids, targets = draw(rng, pairs=pairs, where=where, batch_size=128)
            (total, count), _ = labelled_loss(*answer(ids), targets)
            losses.append(float(total) / count)
    return np.mean(losses)


@section.experiment
def experiment(rng):
    hold_blas()
    for name in MIXERS:
        with processor_seconds() as spent:
            answer, size = trained(name, rng, rate=section.rates[name])
        yield name, "training", {"parameters": size, "seconds": spent()}
        for where in (NEAR, FAR):
            for pairs in PAIRS:
                ids, targets = draw(rng, pairs=pairs, where=where, batch_size=512)
                yield name, (where, pairs), {"right": accuracy(answer(ids)[0], targets)}


# %%
def of(found, name, where, pairs=PAIRS[-1]):
    return found["right"][name][where, pairs]


def told(found, *names, pairs=PAIRS[-1]):
    each = (f"{name} {mean_and_spread(of(found, name, NEAR, pairs))}, {mean_and_spread(of(found, name, FAR, pairs))}" for name in names)
    return f"right of {pairs} pairs, near and far: " + "; ".join(each)


@section.claim(
    "Does a window beside a recurrence recall more than either alone?",
    paper="Ren et al. 2024, arXiv:2406.07522, section 3.3: Samba recalls passkeys far beyond its window",
    measured=lambda found: told(found, MAMBA, WINDOWS, SAMBA, FAR_FIRST),
)
def more_than_either(found):
    """After as many updates, near and far together, the better of the two Sambas is right in at least 0.1 more of 6 pairs than Mamba, and
    than windows.
    """
    both = {name: (of(found, name, NEAR) + of(found, name, FAR)) / 2 for name in MIXERS}
    return max(both[SAMBA], both[FAR_FIRST]) >= max(both[MAMBA], both[WINDOWS]) + 0.1


@section.claim(
    "Beyond its window Samba recalls less than its recurrence does alone, after as many updates",
    paper="not in the paper, which trains far longer",
    measured=lambda found: told(found, MAMBA, SAMBA),
)
def held_up(found):
    """Taught near and far together, Samba is right in at least 0.25 less of 6 far pairs than Mamba alone."""
    return of(found, SAMBA, FAR) <= of(found, MAMBA, FAR) - 0.25


@section.claim(
    "Taught first what its window does not see, Samba recalls more of it",
    paper="not in the paper: where the window answers, the recurrence is not asked",
    measured=lambda found: told(found, SAMBA, FAR_FIRST),
)
def far_first(found):
    """With three tenths of the updates on far pairs alone, Samba is right in at least 0.1 more of 6 far pairs than taught both from the start."""
    return of(found, FAR_FIRST, FAR) >= of(found, SAMBA, FAR) + 0.1


@section.report
def report(found):
    rows = []
    for name in MIXERS:
        size, seconds = (np.mean(found[measure][name]["training"]) for measure in ("parameters", "seconds"))
        shares = [mean_and_spread(100 * of(found, name, where, pairs), ".0f") for where in (NEAR, FAR) for pairs in PAIRS]
        rows.append([name, int(size), float(f"{seconds:.1f}"), *shares])
    rows.append(["any value of the text", None, None, *(f"{100 / pairs:.0f}" for _ in (NEAR, FAR) for pairs in PAIRS)])
    columns = [f"{pairs}, {where}, %" for where in (NEAR, FAR) for pairs in PAIRS]
    section.table("window", ["model", "parameters", "processor seconds", *columns], rows)
    sizes = [np.mean(found["parameters"][name]["training"]) for name in MIXERS]
    section.values("window", {"steps": STEPS, "window": WINDOW, "gap": GAP, "spread": 100 * (max(sizes) / min(sizes) - 1)})
    for key, name in {"mamba": MAMBA, "windows": WINDOWS, "samba": SAMBA, "far_first": FAR_FIRST}.items():
        section.values(f"window.{key}", {where: 100 * np.mean(of(found, name, where)) for where in (NEAR, FAR)})


@section.figure("window", size=(7.6, 3), ncols=2, sharey=True)
def picture(axes, found):
    for ax, where in zip(axes, (NEAR, FAR), strict=True):
        lines(ax, {name: {pairs: of(found, name, where, pairs) for pairs in PAIRS} for name in MIXERS})
        ax.plot(PAIRS, [1 / pairs for pairs in PAIRS], "--", color="#808080", label="any value of the text")
        ax.set(xlabel=f"pairs, {where}", ylim=(0, 1.05), xticks=PAIRS)
    axes[0].set(ylabel="right")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
