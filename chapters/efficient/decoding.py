"""What does a cache save, token by token?

Shazeer 2019, arXiv:1911.02150, section 2.4: decoding step by step computes what the whole computes, from the keys and values that
are kept. A language model of two layers reads texts of growing length, and then writes the next token: from its caches, and by
reading everything again. The prompt comes at once, and in pieces.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import LanguageModelConfig, decode, init_language_model, language_model, language_model_step, prefill
from minitransformers.models.decoding import without_cache
from minitransformers.reporting import Section, fitted_exponent, lines, shortest_times, ticks_at

section = Section(__file__, __doc__, kind="timed")
LENGTHS, PIECES, VOCABULARY = (64, 128, 256, 512, 1024, 2048), (32, 128, 512), 64
CACHED, AGAIN, WHOLE = "with a cache", "everything again", "at once"


# %%
def made(rng, context, dtype):
    """The full pass of a fresh model, and its step."""
    config = LanguageModelConfig(VOCABULARY, context=context, d_model=128, num_layers=2, num_heads=4, position="rope", tied=False)
    params = init_language_model(rng, config, std=0.1, dtype=dtype)
    return partial(language_model, params, config=config), partial(language_model_step, params, config=config)


@section.experiment
def experiment(rng):
    model, step = made(rng, 96, np.float64)
    ids = rng.integers(VOCABULARY, size=(2, 96))
    logits = model(ids=ids)[0]
    for chunk in (1, 7, 32, 96):
        apart = max(np.abs(prefill(step, ids[:, :n], chunk=chunk).logits - logits[:, n - 1]).max() for n in (1, 50, 95, 96))
        yield "pieces", chunk, {"difference": apart}
    cached, again = (decode(each, ids[:, :32], num_tokens=64)[0] for each in (step, without_cache(model)))
    yield "greedy", "tokens", {"other": (cached != again).sum(), "different": len(np.unique(cached))}

    lengths, rounds = (LENGTHS[:3], 5) if section.quick else (LENGTHS, 40)
    model, step = made(rng, LENGTHS[-1] + rounds, np.float32)
    text = rng.integers(VOCABULARY, size=(1, LENGTHS[-1] + 1))
    readings = {n: prefill(step, text[:, :n], chunk=256) for n in lengths}

    def next_token(n):
        readings[n] = prefill(step, text[:, :1], readings[n])

    for n, spent in shortest_times({n: partial(next_token, n) for n in lengths}, rounds=rounds).items():
        yield CACHED, n, {"seconds": spent}
    for n, spent in shortest_times({n: partial(model, ids=text[:, :n]) for n in lengths}, rounds=max(1, rounds // 8)).items():
        yield AGAIN, n, {"seconds": spent}
    prompt = text[:, : lengths[-1]]
    prompts = {WHOLE: partial(prefill, step, prompt), **{f"{chunk} at a time": partial(prefill, step, prompt, chunk=chunk) for chunk in PIECES}}
    for name, spent in shortest_times(prompts, rounds=3).items():
        yield name, lengths[-1], {"prompt": spent}


# %%
def exponents(found):
    """How the time of a token grows with the text, over the longest three: with a cache, and without."""
    return [fitted_exponent(list(found["seconds"][curve])[-3:], list(found["seconds"][curve].values())[-3:]) for curve in (CACHED, AGAIN)]


def single(found):
    """The numbers of the one seed there is."""
    return {measure: {c: {x: float(np.ravel(v)[0]) for x, v in of.items()} for c, of in curves.items()} for measure, curves in found.items()}


@section.claim(
    "A text is the same with a cache and without, in any pieces",
    paper="Shazeer 2019, arXiv:1911.02150, section 2.4: decoding step by step computes what the whole computes",
    kind="exact",
    measured=lambda found: f"{max(single(found)['difference']['pieces'].values()):.0e} apart; of 128 greedy tokens, of "
    f"{single(found)['different']['greedy']['tokens']:.0f} kinds, {single(found)['other']['greedy']['tokens']:.0f} are others",
)
def same(found):
    """In float64 logits of the full pass, to 1e-12, for pieces of 1 to the whole text; and every greedy token the same."""
    return max(found["difference"]["pieces"].values()) < 1e-12 and found["other"]["greedy"]["tokens"] == 0


@section.claim(
    "A token's time grows by one power of the length less with a cache",
    paper="Shazeer 2019, arXiv:1911.02150, section 2.4: what is left grows with the length, and without a cache with its square",
    measured=lambda found: "{:.2f} with a cache, {:.2f} without".format(*exponents(single(found))),
)
def one_less(found):
    """Over the longest three lengths the exponent with a cache is at least 0.8 less than without."""
    cached, again = exponents(found)
    return cached < again - 0.8


@section.claim(
    "A prompt in pieces takes no longer than at once",
    paper="Agrawal et al. 2023, arXiv:2308.16369: pieces large enough to use the processor cost little; here half of the scores fall away",
    measured=lambda found: ", ".join(f"{name} {t:.2f}" for name, t in relative(single(found)).items()) + " (time, at once = 1)",
)
def pieces(found):
    """In pieces of 128 a prompt of 2,048 takes at most as long as at once."""
    return relative(found)["128 at a time"] <= 1


def relative(found):
    times = {name: next(iter(of.values())) for name, of in found["prompt"].items()}
    return {name: t / times[WHOLE] for name, t in times.items()}


@section.report
def report(found):
    found = single(found)
    times, (cached, again) = found["seconds"], exponents(found)
    rows = [[n, 1 / times[CACHED][n], 1 / times[AGAIN][n], times[AGAIN][n] / times[CACHED][n]] for n in times[CACHED]]
    section.table("decoding", ["tokens before", f"tokens a second, {CACHED}", AGAIN, "ratio"], [[n, *(float(f"{a:.3g}") for a in row)] for n, *row in rows])
    section.table("pieces", ["prompt", "time"], [[name, float(f"{t:.2f}")] for name, t in relative(found).items()])
    section.values("decoding", {
        "difference": max(found["difference"]["pieces"].values()), "cached": cached, "again": again, "times": rows[-1][-1], "longest": rows[-1][0],
    })  # fmt: skip
    section.value("decoding.pieces", relative(found)["128 at a time"])


@section.figure("decoding", size=(5, 3))
def picture(ax, found):
    milliseconds = {curve: {n: 1e3 * t for n, t in of.items()} for curve, of in found["seconds"].items()}
    lines(ax, milliseconds, xlabel="tokens before", ylabel="ms for the next token", xscale="log", yscale="log")
    ticks_at(ax, list(milliseconds[CACHED]))
    ax.legend()


if __name__ == "__main__":
    section.main()
