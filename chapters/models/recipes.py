"""GPT-2's recipe and a better one: how few bits a character from the same updates?

Radford et al. 2018, section 4.1, start every weight at 0.02, add a table of positions and normalise with LayerNorm; GPT-2 kept that.
Later models turn queries and keys instead (RoPE) and normalise with RMSNorm. Two models of the same width and depth take the same
number of updates, each with its own learning rate; the better recipe also starts wider and decays its weights more. Delétang et al.
2023, arXiv:2309.10668: language models compress text better than general compressors. So lzma stands beside them, and counted pairs.
"""

# %%
import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, level, lines, listed, mean_and_spread, processor_seconds, size_and_time, tried
from minitransformers.reporting.models.learned import learned
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas
from minitransformers.training.yardsticks import yardsticks

section = Section(__file__, __doc__, kind="trained")
LENGTH, WIDTH, LAYERS, BATCH, STEPS, EVERY = 64, 64, 2, 8, 1500, 125
GPT2, BETTER, DELETED, PROMPT = "GPT-2's recipe", "the better recipe", "its own position alone", "The following "
LATER = {"position": "rope", "norm": "rms_norm"}
RECIPES = {                                                  # parts, start, weight decay
    GPT2: ({}, 0.02, 0.1),
    BETTER: (LATER, 0.1, 0.3),
    DELETED: ({**LATER, "mixer": "sliding_window_attention", "options": {"mixer": {"window": 1}}}, 0.1, 0.3),
}
corpus = Corpus.load(context=LENGTH)
apart = Corpus.from_text(corpus.train_text, context=LENGTH)  # rates are chosen without the validation part
simpler = yardsticks(corpus.train_text, corpus.validation_text)


# %%
def trained(recipe, rng, *, text, rate, steps):
    parts, std, decay = RECIPES[recipe]
    config = mt.LanguageModelConfig(text.vocabulary.size, context=LENGTH, d_model=WIDTH, num_layers=LAYERS, num_heads=4, **parts)
    settings = {"steps": 2 if section.quick else steps, "peak": rate, "warmup": 0.05, "floor": 0.05, "weight_decay": decay}
    return learned(config, text, rng, std=std, batch_size=BATCH, every=1 if section.quick else EVERY, **settings)


@section.tuning
def tuning(rng):
    def lost(recipe, own, *, rate):
        model = trained(recipe, own, text=apart, rate=rate, steps=STEPS // (8 if recipe == DELETED else 4))
        return model.bits(16 if section.quick else None)

    yield from tried(lost, RECIPES, (1e-2,) if section.quick else (1.25e-3, 2.5e-3, 5e-3, 1e-2), rng, alike=False)


@section.experiment
def experiment(rng):
    hold_blas()
    for recipe in RECIPES:
        with processor_seconds() as spent:
            steps = STEPS // 3 if recipe == DELETED else STEPS
            model = trained(recipe, rng, text=corpus, rate=section.rates[recipe], steps=steps)
        yield recipe, "end", {"bits": model.bits(16 if section.quick else None), "seconds": spent(), "parameters": model.size}
        for step, number in model.curve.items():
            yield recipe, step, {"curve": number}
        if recipe == BETTER:
            yield recipe, "end", {"overlapping": model.bits_overlapping(64 if section.quick else None)}
            for place, token in enumerate(model.continued(PROMPT, rng, num_tokens=160)):
                yield recipe, place, {"written": token}


# %%
def end(found, recipe, measure="bits"):
    return found[measure][recipe]["end"]


@section.claim(
    "Both recipes beat counting pairs of characters",
    paper="a network that sees more than one character back must beat a bigram model",
    measured=lambda found: f"{listed(found['bits'], (GPT2, BETTER), 'end', '.3f')}; pairs {simpler.bigram:.3f}, of validation itself {simpler.bigram_oracle:.3f}",
)
def beats_pairs(found):
    """More than 0.3 bits a character below counted pairs, and below pairs that were counted on the validation part itself."""
    worse = max(end(found, GPT2), end(found, BETTER))
    return worse < simpler.bigram - 0.3 and worse < simpler.bigram_oracle


@section.claim(
    "After the same updates the better recipe is far ahead of GPT-2's",
    paper="Touvron et al. 2023, arXiv:2302.13971, section 2.2: RoPE and RMSNorm in the place of GPT-2's; nobody there compares the start",
    measured=lambda found: listed(found["bits"], (GPT2, BETTER), "end", ".3f") + " bits a character",
)
def ahead(found):
    """At least 0.2 bits a character fewer, with no more parameters."""
    fewer = end(found, BETTER, "parameters") <= end(found, GPT2, "parameters")
    return end(found, BETTER) <= end(found, GPT2) - 0.2 and fewer


@section.claim(
    "The better recipe beats lzma alone",
    paper="Delétang et al. 2023, arXiv:2309.10668: language models compress text better than general compressors",
    measured=lambda found: f"{listed(found['bits'], [BETTER], 'end', '.3f')}; lzma {simpler.lzma_alone:.3f} bits a character",
)
def beats_lzma(found):
    """Fewer bits a character than lzma needs for the validation part alone."""
    return end(found, BETTER) < simpler.lzma_alone


@section.claim(
    "Does it beat lzma that has read the training text?",
    paper="no paper: the compressors of Delétang et al. 2023, arXiv:2309.10668, have not read what the model was trained on",
    measured=lambda found: f"{listed(found['bits'], [BETTER], 'end', '.3f')}; in windows that overlap {mean_and_spread(end(found, BETTER, 'overlapping'), '.3f')}; "
    f"lzma after the training text {simpler.lzma_after_train:.3f} bits a character",
)
def beats_all(found):
    """Fewer bits a character than lzma adds for the validation part after the training part."""
    return end(found, BETTER) < simpler.lzma_after_train


@section.report
def report(found):
    rows = []
    for recipe in RECIPES:
        name = f"{recipe}, a third of the updates" if recipe == DELETED else recipe
        rows.append([name, mean_and_spread(end(found, recipe), ".3f"), *size_and_time(found, recipe, "end"), f"{section.rates[recipe]:g}"])
    section.table("recipes", ["recipe", "bits a character", "parameters", "processor seconds", "learning rate"], rows)
    others = {
        "every character alike": simpler.uniform, "characters counted (unigram)": simpler.unigram, "pairs counted (bigram)": simpler.bigram,
        "pairs counted on the validation text itself": simpler.bigram_oracle, "zlib, the validation text alone": simpler.zlib_alone,
        "lzma, the validation text alone": simpler.lzma_alone, "lzma, after the training text": simpler.lzma_after_train,
        GPT2: np.mean(end(found, GPT2)), BETTER: np.mean(end(found, BETTER)),
        "the same, windows that overlap by half": np.mean(end(found, BETTER, "overlapping")),
    }  # fmt: skip
    section.table("yardsticks", ["what", "bits a character"], sorted(others.items(), key=lambda row: -row[1]))
    section.values("yardsticks", simpler._asdict())
    section.values("text", {"characters": len(corpus.train_text) + len(corpus.validation_text), "vocabulary": corpus.vocabulary.size})
    for name, recipe in (("gpt2", GPT2), ("better", BETTER), ("deleted", DELETED)):
        (size, seconds), spread = size_and_time(found, recipe, "end"), np.std(end(found, recipe))
        section.values(name, {"bits": np.mean(end(found, recipe)), "spread": spread, "parameters": size, "seconds": seconds})
    section.value("better.overlapping", np.mean(end(found, BETTER, "overlapping")))
    section.values("recipes", {"steps": STEPS, "length": LENGTH, "batch": BATCH, "characters": STEPS * BATCH * LENGTH})
    ids = np.array([np.ravel(token)[0] for token in found["written"][BETTER].values()], int)
    section.table("sample", ["prompt", "what the model writes"], [[PROMPT, " ".join(corpus.vocabulary.decode(ids).split())]])


@section.figure("training", size=(6, 3.6))
def picture(ax, found):
    lines(ax, found["curve"], xlabel="updates", ylabel="bits a character, 64 windows", ylim=(1.3, 5))
    level(ax, simpler.bigram, "counted pairs")
    level(ax, simpler.lzma_alone, "lzma alone")
    level(ax, simpler.lzma_after_train, "lzma after the training text")
    ax.legend(loc="upper center", ncols=2)


if __name__ == "__main__":
    section.main()
