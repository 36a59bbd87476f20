"""A small Llama that sections begin with where they need a model that has learned something: trained once, kept beside this file.

It has read Python's language reference, byte by byte, but for the last fifths of the six longest entries, which a section that sorts
lines into entries asks about. ``python -m minitransformers.reporting.base`` trains it again, in some minutes, and writes base.safetensors
with Hugging Face's names: ``transformers`` loads it as well.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minitransformers.foundation.safetensors import write_safetensors
from minitransformers.models.llama import Llama, init_llama, llama, llama_weights, load_llama
from minitransformers.training.fit import fit
from minitransformers.training.language_modelling import LanguageModelling
from minitransformers.training.text import Corpus

BASE = Path(__file__).with_name("base.safetensors")
LENGTH = 64
SIZES: dict[str, Any] = {"vocabulary": 256, "d_model": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "d_hidden": 176, "tied": True}
SETTINGS: dict[str, Any] = {"num_heads": 4}
STEPS, BATCH, PEAK = 3000, 8, 5e-3


def longest_entries(count: int = 6) -> dict[str, tuple[str, str]]:
    """The longest entries of the reference, each as what the base model may have read, four fifths, and what it has not."""
    from pydoc_data.topics import topics

    chosen = sorted(sorted(topics, key=lambda name: -len(topics[name]))[:count])
    cuts = {name: len(topics[name]) * 4 // 5 for name in chosen}
    return {name: (topics[name][: cuts[name]], topics[name][cuts[name] :]) for name in chosen}


def base_corpus() -> Corpus:
    """The text that the base model learned from, and, its last tenth, the text that it is judged by."""
    from pydoc_data.topics import topics

    known = {name: known for name, (known, _) in longest_entries().items()}
    text = "\n".join(known.get(name, topics[name]) for name in sorted(topics))
    return Corpus.from_text(text, context=LENGTH, vocabulary="bytes", name="Python language reference")


def load_base() -> Llama:
    """Its parameters, in float32; ``llama(params, ids=ids, **SETTINGS)`` takes them."""
    return load_llama(BASE)


def trained_base(rng: np.random.Generator, *, steps: int = STEPS) -> tuple[Llama, LanguageModelling]:
    """A model of its sizes after as many updates, and the task that it learned."""
    task = LanguageModelling(base_corpus(), partial(llama, **SETTINGS), context=LENGTH, batch_size=BATCH)
    params = init_llama(rng, **SIZES, std=0.1)
    return fit(params, task, steps=steps, peak=PEAK, rng=rng, warmup=0.05, floor=0.05, weight_decay=0.3), task


def main() -> None:
    """Train it and write it."""
    params, task = trained_base(np.random.default_rng(0))
    measured = task.evaluate(params)["bits per character"]
    metadata = {"format": "pt", "bits per character": f"{measured:.4f}", "updates": f"{STEPS}", "text": "Python language reference, without six ends"}
    write_safetensors(BASE, llama_weights(params), metadata=metadata)
    print(f"{BASE.name}: {measured:.3f} bits a character, {math.ceil(BASE.stat().st_size / 1000):,} kB")


if __name__ == "__main__":
    main()
