"""Do GPT-2 and Llama learn here exactly as they do in PyTorch?

No paper: what is right by hand must be right after a hundred updates as well. Hugging Face's models start from the same weights, read the
same batches, and learn by PyTorch's autograd and AdamW, with the same rates, decay and clipping. In float64 nothing but rounding may
part the two curves; in float32 rounding grows from update to update. (Hugging Face's Llama rounds norms and rotations to float32 even in a
model of float64.)
"""

# %%
from functools import partial
from importlib.util import find_spec

import numpy as np

from minitransformers.models.gpt2 import gpt2, gpt2_weights, init_gpt2
from minitransformers.models.llama import init_llama, llama, llama_weights
from minitransformers.reporting import Section, lines, processor_seconds
from minitransformers.reporting.models.pytorch import decaying, their_losses, with_weights
from minitransformers.training.fit import fit
from minitransformers.training.language_modelling import LanguageModelling
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas


def missing(quick):
    if not (find_spec("torch") and find_spec("transformers")):
        return "needs PyTorch and transformers"
    return "PyTorch takes longer to start than a quick run may last" if quick else None


section = Section(__file__, __doc__, kind="exact", needs=missing)
LENGTH, WIDTH, LAYERS, HEADS, HIDDEN, BATCH, STEPS, PEAK, DECAY = 64, 48, 2, 4, 128, 8, 100, 5e-3, 0.1
GPT2, LLAMA = "GPT-2", "Llama"
PRECISIONS = {"float64": np.float64, "float32": np.float32}
MODELS = {GPT2: (gpt2, gpt2_weights), LLAMA: (llama, llama_weights)}
corpus = Corpus.load(context=LENGTH)


# %% The same model on both sides
def fresh(name, rng, dtype):
    sizes = {"vocabulary": corpus.vocabulary.size, "d_model": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "std": 0.1, "dtype": dtype}
    return init_gpt2(rng, context=LENGTH, **sizes) if name == GPT2 else init_llama(rng, num_kv_heads=2, d_hidden=HIDDEN, tied=True, **sizes)


def theirs(name, params):
    """Hugging Face's model with the same weights."""
    import torch
    import transformers

    torch.set_num_threads(1)
    shared = {"vocab_size": corpus.vocabulary.size, "attn_implementation": "eager", "bos_token_id": 0, "eos_token_id": 0}
    if name == GPT2:
        config = transformers.GPT2Config(
            n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **shared
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=2, intermediate_size=HIDDEN,
            rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=LENGTH, **shared,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    return with_weights(model, MODELS[name][1](params))


def our_curve(name, params, task, rng):
    losses = []
    fit(params, task, steps=STEPS, peak=PEAK, rng=rng, weight_decay=DECAY, watch=lambda step, loss, _: losses.append(loss))
    return losses


def their_curve(name, params, task, rng):
    decays = decaying(params, MODELS[name][1])
    return their_losses(theirs(name, params), task.batch, rng, steps=STEPS, peak=PEAK, weight_decay=DECAY, decays=decays)


@section.experiment
def experiment(rng):
    hold_blas()
    start = rng.integers(2**32)
    for name, (model, _) in MODELS.items():
        for precision, dtype in PRECISIONS.items():
            params = fresh(name, np.random.default_rng(start), dtype)
            task = LanguageModelling(corpus, partial(model, num_heads=HEADS), context=LENGTH, batch_size=BATCH)
            with processor_seconds() as spent:
                ours = our_curve(name, params, task, np.random.default_rng(start))
            yield f"{name}, {precision}", "all", {"seconds": spent()}
            reference = their_curve(name, params, task, np.random.default_rng(start))
            for step, (a, b) in enumerate(zip(ours, reference, strict=True), 1):
                yield f"{name}, {precision}", step, {"loss": a, "theirs": b, "gap": abs(a - b)}


# %%
def worst(found, name):
    return np.max(list(found["gap"][name].values()), axis=0)


def told(found, *names):
    return "; ".join(f"{name}: at most {np.max(worst(found, name)):.1e} nats" for name in names)


@section.claim(
    "GPT-2's curve is PyTorch's",
    paper="no paper: both compute the same",
    measured=lambda found: told(found, "GPT-2, float64", "GPT-2, float32"),
)
def same(found):
    """Over all updates the losses differ by at most 1e-12 nats in float64 and 1e-4 in float32."""
    return worst(found, "GPT-2, float64") <= 1e-12 and worst(found, "GPT-2, float32") <= 1e-4


@section.claim(
    "Llama's curve is PyTorch's, as far as PyTorch's is of float64",
    paper="no paper: Hugging Face's Llama rounds its norms and rotations to float32",
    measured=lambda found: told(found, "Llama, float64", "Llama, float32"),
)
def nearly(found):
    """Over all updates the losses differ by at most 1e-5 nats in float64 and 1e-4 in float32."""
    return worst(found, "Llama, float64") <= 1e-5 and worst(found, "Llama, float32") <= 1e-4


@section.report
def report(found):
    rows = []
    for name in found["gap"]:
        last = max(step for step in found["loss"][name])
        rows.append([name, *(float(f"{np.mean(found[side][name][last]):.4f}") for side in ("loss", "theirs")), f"{np.max(worst(found, name)):.1e}"])
    section.table("curves", ["model", "loss after all updates, nats", "PyTorch's", "largest gap over all updates"], rows)
    for key, name in {"gpt2": "GPT-2, float64", "gpt2_single": "GPT-2, float32", "llama": "Llama, float64", "llama_single": "Llama, float32"}.items():
        section.value(f"curves.{key}", np.max(worst(found, name)))
    section.value("curves.steps", STEPS)


@section.figure("curves", size=(7.6, 3), ncols=2)
def picture(axes, found):
    single = {f"{name}{who}": found[side][f"{name}, float32"] for name in MODELS for side, who in (("loss", ""), ("theirs", ", PyTorch"))}
    lines(axes[0], single, marker="", xlabel="update", ylabel="loss, nats (float32)")
    largest = {name: dict(zip(of, np.maximum.accumulate([np.max(gap) for gap in of.values()]), strict=True)) for name, of in found["gap"].items()}
    lines(axes[1], largest, marker="", xlabel="update", ylabel="largest gap until then, nats", yscale="log", ylim=(1e-17, 1e-2))
    for ax in axes:
        ax.legend(fontsize=8, loc="upper right", ncols=1 + (ax is axes[1]))


if __name__ == "__main__":
    section.main()
