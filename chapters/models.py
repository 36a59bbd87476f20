"""Models: a language model made of parts, trained on real text and measured against real yardsticks.

The text is Python's language reference, which every Python carries. The last tenth is kept for validation, and all
figures are bits per character on it: how many yes-or-no answers one still needs for each character.
"""

# %% The text, and what simpler things make of it
import time
from functools import partial

import numpy as np

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.foundation import trees
from minitransformers.models.decoding import generate, without_cache
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model, language_model_step
from minitransformers.reporting.chapter import Chapter
from minitransformers.training.config import TrainingConfig
from minitransformers.training.loop import train
from minitransformers.training.text import Corpus
from minitransformers.training.workbench import workbench_task
from minitransformers.training.yardsticks import yardsticks

chapter = Chapter("models", __doc__)
CONTEXT = 64
STEPS, SWAP_STEPS, WINDOWS = (40, 10, 20) if chapter.quick else (600, 120, 200)
corpus = Corpus.load(context=CONTEXT)
if chapter.quick:  # a part of the text, so that compressing and counting it takes no time
    corpus = Corpus.from_text(corpus.train_text[:60_000], context=CONTEXT, name=corpus.name)

measured = yardsticks(corpus.train_text, corpus.validation_text)
for name, bits in measured._asdict().items():
    chapter.value(f"yardsticks.{name}", bits)
chapter.value("text.characters", len(corpus.train_text) + len(corpus.validation_text))
chapter.value("text.vocabulary", corpus.vocabulary.size)


# %% GPT-2's parts, small
def configuration(**changes):
    sizes = {"vocabulary_size": corpus.vocabulary.size, "context": CONTEXT, "d_model": 128, "num_layers": 4, "num_heads": 4}
    return LanguageModelConfig(**{**sizes, **changes})


def trained(config, steps, *, windows=None, eval_every=0, learning_rate=2e-3):
    settings = TrainingConfig(
        steps=steps, learning_rate=learning_rate, warmup=0.1, weight_decay=0.1, seed=chapter.seed, eval_every=eval_every, checkpoint_every=0
    )
    task = workbench_task(corpus, config, batch_size=12, eval_windows=windows)
    return train(task=task, init=partial(init_language_model, config=config), config=settings, quiet=steps < 200)


gpt2 = configuration()
fresh = init_language_model(np.random.default_rng(chapter.seed), gpt2)
rng, ids = chapter.rng(), corpus.validation[: 8 * CONTEXT].reshape(8, CONTEXT)
logits, _ = language_model(fresh, ids=ids, config=gpt2)
uniform = float(np.log(corpus.vocabulary.size))
first_loss = float(cross_entropy(logits, targets=rng.integers(corpus.vocabulary.size, size=ids.shape))[0])
on_text = float(cross_entropy(logits[:, :-1], targets=ids[:, 1:])[0])
chapter.value("fresh.random", first_loss)
chapter.value("fresh.text", on_text)
chapter.claim(
    "A fresh model is unsure",
    paper="Radford et al. 2019: weights start at N(0, 0.02²), so all logits are near 0",
    expect=f"within 0.1 of ln {corpus.vocabulary.size} = {uniform:.3f} nats for random targets; somewhat lower on text, where tokens "
    "repeat: a tied head favours the token just read, whose embedding it still sees",
    measured=f"{first_loss:.3f} nats for random targets, {on_text:.3f} on the text",
    holds=abs(first_loss - uniform) < 0.1 and on_text < first_loss,
)

result = trained(gpt2, STEPS, eval_every=max(1, STEPS // 8), windows=WINDOWS)
chapter.value("gpt2.parameters", trees.count_parameters(result.params))
chapter.value("gpt2.steps", STEPS)
chapter.value("gpt2.bits", result.final_validation)
chapter.value("gpt2.seconds", result.seconds)
chapter.value("gpt2.tokens_per_second", result.labels_per_second)

rows = [
    ["every character alike", measured.uniform],
    ["characters counted (unigram)", measured.unigram],
    ["pairs counted (bigram)", measured.bigram],
    ["pairs counted on the validation text itself", measured.bigram_oracle],
    ["zlib, the validation text alone", measured.zlib_alone],
    ["lzma, the validation text alone", measured.lzma_alone],
    ["lzma, after the training text", measured.lzma_after_train],
    [f"this model, {STEPS} steps", result.final_validation],
]
chapter.table("yardsticks", ["what", "bits per character"], sorted(rows, key=lambda row: -row[1]))

with chapter.figure("training") as (fig, ax):
    steps = [record.step for record in result.history]
    ax.plot(steps, [record.loss / np.log(2) for record in result.history], linewidth=0.6, alpha=0.5, label="training batch")
    at = [(record.step, record.validation) for record in result.history if record.validation is not None]
    ax.plot(*zip(*at, strict=True), marker="o", label="validation")
    for name, bits in (("unigram", measured.unigram), ("bigram", measured.bigram), ("lzma alone", measured.lzma_alone)):
        ax.axhline(bits, linestyle="--", linewidth=1, color="#808080")
        ax.annotate(name, (steps[-1], bits), ha="right", va="bottom", fontsize=9)
    ax.set(xlabel="step", ylabel="bits per character", ylim=(1.5, 7))
    ax.legend(loc="upper right")

chapter.claim(
    "The model beats counting pairs of characters",
    paper="a network that sees more than one character back must beat a bigram model",
    expect="more than 0.3 bits per character below the bigram, even below one fitted on the validation text itself",
    measured=f"{result.final_validation:.2f} against {measured.bigram:.2f} and {measured.bigram_oracle:.2f} bits per character",
    holds=bool(result.final_validation < min(measured.bigram - 0.3, measured.bigram_oracle)),
    full_only=True,
)
chapter.claim(
    "The model beats lzma",
    paper="large language models compress text better than any general compressor (Delétang et al. 2023, arXiv:2309.10668)",
    expect="not within a minute: lzma looks back over the whole text, the model over 64 characters",
    measured=f"{result.final_validation:.2f} against {measured.lzma_alone:.2f} (alone) and {measured.lzma_after_train:.2f} (after the training text)",
    holds=bool(result.final_validation < measured.lzma_after_train),
    toy_scale="a minute of training, 64 characters of context; the reference repeats itself over thousands",
)

# %% Other parts in the same frame: same text, same seed, same number of steps
# GPT-2 starts its weights at 0.02 whatever the width. A gated network multiplies two maps, so there its first outputs are
# the square of small: models with gates start at 1/sqrt(d_model) instead (SmolLM2's published configuration).
WIDTH = 64
WIDER_START = {"std": WIDTH**-0.5}
LLAMA = "Llama: RoPE, RMSNorm, SwiGLU, 2 key heads, 1/√d start"
choices = {
    "GPT-2: learned, LayerNorm, GELU, 0.02 start": {},
    "1/√d start": {"options": {"channel": WIDER_START, "mixer": WIDER_START}},
    "norm after the sum": {"placement": "post"},
    "RMSNorm": {"norm": "rms_norm"},
    "RoPE": {"position": "rope"},
    "sinusoidal": {"position": "sinusoidal", "scale_embedding": True},
    "no position": {"position": "none"},
    "SwiGLU": {"channel": "gated_feed_forward"},
    "SwiGLU, 1/√d start": {"channel": "gated_feed_forward", "options": {"channel": WIDER_START}},
    "one key head (MQA)": {"mixer": "grouped_query_attention", "options": {"mixer": {"num_kv_heads": 1}}},
    "window of 8": {"mixer": "sliding_window_attention", "options": {"mixer": {"window": 8}}},
    LLAMA: {
        "position": "rope", "norm": "rms_norm", "channel": "gated_feed_forward", "mixer": "grouped_query_attention",
        "options": {"mixer": {"num_kv_heads": 2, **WIDER_START}, "channel": WIDER_START},
    },
}  # fmt: skip
rows = []
for name, changes in chapter.progress(choices.items(), "parts"):
    config = configuration(d_model=WIDTH, num_layers=2, **changes)
    outcome = trained(config, SWAP_STEPS, windows=WINDOWS, learning_rate=4e-3)
    rows.append([name, trees.count_parameters(outcome.params), outcome.final_validation])
chapter.table("parts", ["parts", "parameters", "bits per character"], rows)
bits_of = {name: bits for name, _, bits in rows}
gpt2_bits, llama_bits = bits_of[next(iter(choices))], bits_of[LLAMA]
chapter.value("parts.steps", SWAP_STEPS)
chapter.value("parts.gpt2", gpt2_bits)
chapter.value("parts.llama", llama_bits)
chapter.value("parts.swiglu_small_start", bits_of["SwiGLU"])
chapter.value("parts.swiglu", bits_of["SwiGLU, 1/√d start"])
chapter.claim(
    "Llama's parts learn faster than GPT-2's",
    paper="Touvron et al. 2023, arXiv:2302.13971: RoPE, RMSNorm and SwiGLU, each chosen because it trained better",
    expect="lower bits after the same steps, each with its own initialisation; more than 0.1, because it is one seed",
    measured=f"{llama_bits:.2f} against {gpt2_bits:.2f} bits per character",
    holds=bool(llama_bits < gpt2_bits - 0.1),
    full_only=True,
)
chapter.claim(
    "A gated network needs a wider start",
    paper="the product of two maps that start small starts as the square of small (see the gated feed-forward page)",
    expect="SwiGLU learns clearly faster from 1/√d than from GPT-2's 0.02",
    measured=f"{bits_of['SwiGLU, 1/√d start']:.2f} against {bits_of['SwiGLU']:.2f} bits per character",
    holds=bool(bits_of["SwiGLU, 1/√d start"] < bits_of["SwiGLU"] - 0.1),
    full_only=True,
)

# %% Larger models learn more from the same text
rows = []
for width in (16, 32, 64):
    outcome = trained(configuration(d_model=width, num_layers=2), SWAP_STEPS, windows=WINDOWS, learning_rate=4e-3)
    rows.append([width, trees.count_parameters(outcome.params), outcome.final_validation])
chapter.table("sizes", ["width", "parameters", "bits per character"], rows)
chapter.claim(
    "Larger models reach lower loss",
    paper="Radford et al. 2019, figure 1; Kaplan et al. 2020, arXiv:2001.08361",
    expect="bits per character fall from width 16 to 32 to 64",
    measured=" > ".join(f"{bits:.2f}" for _, _, bits in rows),
    holds=bool(rows[0][2] > rows[1][2] > rows[2][2]),
    full_only=True,
)

# %% Writing: with the cache a token costs one position
prompt, step = corpus.validation[:16], partial(language_model_step, result.params, config=gpt2)
write = partial(generate, context=CONTEXT, temperature=0.8, top_p=0.9, vocabulary_size=gpt2.vocabulary_size)
cached_logits, state = [], None
for i in range(CONTEXT):
    part, state = step(corpus.validation[None, i : i + 1], state)
    cached_logits.append(part)
whole, _ = language_model(result.params, ids=corpus.validation[None, :CONTEXT], config=gpt2)
difference = float(np.abs(np.concatenate(cached_logits, axis=1) - whole).max())
seconds = {}
for cached, decode in ((True, step), (False, without_cache(partial(language_model, result.params, config=gpt2)))):
    start = time.perf_counter()
    text = list(write(decode, prompt_ids=prompt, num_tokens=CONTEXT - len(prompt), rng=chapter.rng()))
    seconds[cached] = time.perf_counter() - start
chapter.value("cache.ratio", seconds[False] / seconds[True])
chapter.value("cache.difference", difference)
chapter.claim(
    "The cache changes nothing but the cost",
    paper="keys and values of the past never change under a causal mask",
    expect="logits equal to rounding (float32), and less time even for a window of 64",
    measured=f"largest difference {difference:.1e}; {seconds[False] / seconds[True]:.1f} times faster",
    holds=bool(difference < 1e-4 and seconds[True] < seconds[False]),
)
prompt = corpus.vocabulary.encode("The following ")
written = corpus.vocabulary.decode(np.array(list(write(step, prompt_ids=prompt, num_tokens=160, rng=chapter.rng()))))
chapter.table("sample", ["prompt", "what the model writes"], [[corpus.vocabulary.decode(prompt), " ".join(written.split())]])

chapter.finish()
