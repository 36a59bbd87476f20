"""Can text be written from a state that does not grow?

Gu and Dao 2023 (Mamba), arXiv:2312.00752, section 4.5: no cache of keys and values, constant time and memory a token. The same small language
model with four mixers reads a text at once and token by token, and writes with its state and without it. The weights are random: what is
asked is whether both are one map. True by construction.
"""

# %%
from functools import partial

import numpy as np

from minitransformers import LanguageModelConfig, init_language_model, language_model, trees
from minitransformers.models.decoding import generate, without_cache
from minitransformers.models.workbench.language_model import language_model_step
from minitransformers.reporting import Section
from minitransformers.training.text import Corpus

section = Section(__file__, __doc__, kind="exact")
LENGTH, EARLY, WRITTEN, ATTENTION = 256, 16, 24, "attention, RoPE"
MIXERS = {
    "Mamba": ("mamba", "none", {"d_state": 8}),
    "Mamba-2": ("mamba2", "none", {"d_state": 16}),
    "S4D": ("s4d", "none", {}),
    ATTENTION: ("multi_head_attention", "rope", {}),
}
corpus = Corpus.load(context=LENGTH)


# %%
def config_of(name):
    mixer, position, options = MIXERS[name]
    return LanguageModelConfig(
        corpus.vocabulary.size, context=LENGTH, d_model=64, num_layers=2, num_heads=4, mixer=mixer, position=position, norm="rms_norm",
        options={"mixer": options},
    )  # fmt: skip


def bytes_of(state):
    """What the decoding states of all blocks take."""
    return sum(block.bytes if hasattr(block, "bytes") else sum(leaf.nbytes for _, leaf in trees.leaves(block)) for block in state.blocks)


@section.experiment
def experiment(rng):
    ids = corpus.validation[None, : 64 if section.quick else LENGTH]
    for name in MIXERS:
        config = config_of(name)
        params = init_language_model(rng, config, std=0.1)
        step, whole = (partial(function, params, config=config) for function in (language_model_step, language_model))
        state, logits = None, []
        for t in range(ids.shape[1]):
            now, state = step(ids[:, t : t + 1], state)
            logits.append(now)
            if t + 1 in (EARLY, ids.shape[1]):
                yield name, t + 1, {"bytes": bytes_of(state)}
        difference = np.abs(np.concatenate(logits, axis=1) - whole(ids=ids)[0]).max()
        texts = [list(generate(way, prompt_ids=ids[0, :8], num_tokens=WRITTEN, rng=np.random.default_rng(section.seed), context=LENGTH))
                 for way in (step, without_cache(whole))]  # fmt: skip
        yield name, "text", {"difference": difference, "same": texts[0] == texts[1]}


# %%
def worst(found):
    return max(np.max(of["text"]) for of in found["difference"].values())


def kib(found, name):
    return [float(np.ravel(size)[0]) / 1024 for size in found["bytes"][name].values()]


@section.claim(
    "Text is written from a state that does not grow",
    paper="Gu and Dao 2023, arXiv:2312.00752, section 4.5: no cache of keys and values, constant time and memory a token",
    measured=lambda found: f"largest difference {worst(found):.0e}; attention {kib(found, ATTENTION)[0]:.0f} KiB after {EARLY} tokens, "
    f"{kib(found, ATTENTION)[-1]:.0f} after {max(found['bytes'][ATTENTION])}",
)
def from_a_state(found):
    """Logits token by token equal those of the whole text to 1e-3 in float32, and the same text is written with the state as without it. The
    state takes as many bytes after 16 tokens as at the end; that of attention takes more.
    """
    same = worst(found) < 1e-3 and all(of["text"] for of in found["same"].values())
    return same and all((len(set(kib(found, name))) == 1) == (name != ATTENTION) for name in MIXERS)


@section.report
def report(found):
    section.table("writing", ["mixer", f"KiB after {EARLY} tokens", f"after {max(found['bytes'][ATTENTION])}"], [[name, *kib(found, name)] for name in MIXERS])
    section.values("text", {"length": LENGTH, "difference": worst(found)})


if __name__ == "__main__":
    section.main()
