"""Does the cache change anything but the cost?

Keys and values of the past never change under a causal mask, so a model that keeps them writes the same text as one that reads all of it
again for each character. Both recipes' parts write with and without a cache, in windows of growing length.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import LanguageModelConfig, init_language_model, language_model
from minitransformers.models.decoding import generate, without_cache
from minitransformers.models.workbench.language_model import language_model_step
from minitransformers.reporting import Section, lines, shortest_times, ticks_at
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="exact")
LENGTHS, PROMPT = (64, 128, 256), 16
PARTS = {"GPT-2's parts": {}, "RoPE and RMSNorm": {"position": "rope", "norm": "rms_norm"}}
corpus = Corpus.load(context=LENGTHS[-1])


# %%
def both_ways(parts, rng, *, context, dtype):
    """A model that nobody trained, its step with a cache, and one without."""
    config = LanguageModelConfig(corpus.vocabulary.size, context=context, d_model=64, num_layers=2, num_heads=4, **parts)
    params = init_language_model(rng, config, std=0.1, dtype=dtype)
    model = partial(language_model, params, config=config)
    return model, partial(language_model_step, params, config=config), without_cache(model)


def written(step, context):
    """The ids that fill the window after the prompt."""
    rng = np.random.default_rng(section.seed)
    return list(generate(step, prompt_ids=corpus.validation[:PROMPT], num_tokens=context - PROMPT, rng=rng, context=context))


@section.experiment
def experiment(rng):
    hold_blas()
    for name, parts in PARTS.items():
        for dtype in (np.float64, np.float32):
            model, step, plain = both_ways(parts, rng, context=LENGTHS[0], dtype=dtype)
            ids, state, rows = corpus.validation[None, : LENGTHS[0]], None, []
            for i in range(LENGTHS[0]):
                logits, state = step(ids[:, i : i + 1], state)
                rows.append(logits)
            yield name, dtype.__name__, {"difference": np.abs(np.concatenate(rows, axis=1) - model(ids=ids)[0]).max()}
            if dtype is np.float64:
                yield name, "text", {"alike": written(step, LENGTHS[0]) == written(plain, LENGTHS[0])}
        for context in LENGTHS[:1] if section.quick else LENGTHS:
            _, step, plain = both_ways(parts, rng, context=context, dtype=np.float32)
            calls = {"cache": partial(written, step, context), "again": partial(written, plain, context)}
            seconds = shortest_times(calls, rounds=1 if section.quick else 5)
            yield name, context, {"ratio": seconds["again"] / seconds["cache"]}


# %%
def single(found, measure, name, x):
    return float(np.ravel(found[measure][name][x])[0])


def ratios_of(found, name):
    return ", ".join(f"{single(found, 'ratio', name, n):.1f}" for n in found["ratio"][name])


def worst(found, dtype):
    return max(single(found, "difference", name, dtype) for name in PARTS)


@section.claim(
    "The cache changes nothing",
    paper="keys and values of the past never change under a causal mask",
    measured=lambda found: f"logits differ by at most {worst(found, 'float64'):.1e} in float64, {worst(found, 'float32'):.1e} in float32",
)
def nothing(found):
    """Logits equal to 1e-10 in float64 and to 1e-4 in float32, and the same text written."""
    alike = all(single(found, "alike", name, "text") for name in PARTS)
    return worst(found, "float64") < 1e-10 and worst(found, "float32") < 1e-4 and alike


@section.claim(
    "It costs less already in a window of 64, and the longer the text the less",
    paper="without a cache n characters read n (n + 1) / 2 positions, with one n",
    kind="timed",
    measured=lambda found: "time without over time with: " + "; ".join(f"{name} {ratios_of(found, name)}" for name in PARTS),
)
def cheaper(found):
    """Without a cache more than the time with one at 64, and at 256 at least twice the ratio of 64."""
    ratios = [[single(found, "ratio", name, n) for n in LENGTHS] for name in PARTS]
    return all(first > 1 and last >= 2 * first for first, *_, last in ratios)


@section.report
def report(found):
    lengths = list(found["ratio"]["GPT-2's parts"])
    rows = [[name, *(float(f"{single(found, 'ratio', name, n):.2g}") for n in lengths)] for name in PARTS]
    section.table("cache", ["time without over time with a cache", *(f"window of {n}" for n in lengths)], rows)
    section.values("cache", {"difference": worst(found, "float32"), "difference_double": worst(found, "float64")})
    section.value("cache.ratio", max(single(found, "ratio", name, LENGTHS[0]) for name in PARTS))


@section.figure("cache", size=(5, 3))
def picture(ax, found):
    lines(ax, found["ratio"], xlabel="characters in the window", ylabel="time without / with a cache", xscale="log")
    ticks_at(ax, list(found["ratio"]["GPT-2's parts"]))
    ax.legend()


if __name__ == "__main__":
    section.main()
