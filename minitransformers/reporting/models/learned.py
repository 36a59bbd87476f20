"""A language model of the workbench that has learned a text, and what sections ask of it: bits a character, and to write on."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minitransformers.foundation import trees
from minitransformers.models.decoding import generate
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model, language_model_step
from minitransformers.reporting.measures import bits_in_windows
from minitransformers.training.fit import fit
from minitransformers.training.text import Corpus
from minitransformers.training.workbench import workbench_task


class Learned(NamedTuple):
    """Its parameters, and bits a character of 64 windows on the way there, by update."""

    params: trees.Tree
    config: LanguageModelConfig
    text: Corpus
    batch_size: int
    curve: dict[int, float]

    @property
    def size(self) -> int:
        """How many parameters it has."""
        return trees.count_parameters(self.params)

    def bits(self, windows: int | None = None) -> float:
        """Every character of the validation part but the first, once, from what its window has before it; or of so many windows."""
        task = workbench_task(self.text, self.config, batch_size=self.batch_size, eval_windows=windows)
        return task.evaluate(self.params)["bits per character"]

    def bits_overlapping(self, windows: int | None = None) -> float:
        """In windows that overlap by half, of which the second half counts: each character has at least that many before it."""
        new = self.config.context // 2
        text = self.text.validation if windows is None else self.text.validation[: (windows + 1) * new + 1]
        return bits_in_windows(partial(language_model, self.params, config=self.config), text, self.config.context, new=new)

    def continued(self, prompt: str, rng: np.random.Generator, *, num_tokens: int) -> list[int]:
        """The ids of so many characters that it writes behind a prompt."""
        step, ids = partial(language_model_step, self.params, config=self.config), self.text.vocabulary.encode(prompt)
        return list(generate(step, prompt_ids=ids, num_tokens=num_tokens, rng=rng, temperature=0.8, top_p=0.9, context=self.config.context))


def learned(
    config: LanguageModelConfig, text: Corpus, rng: np.random.Generator, *, std: float, batch_size: int, every: int, **settings: Any
) -> Learned:
    """A fresh model after a fit; settings are those of ``fit``. Its curve has a point after every so many updates."""
    whole, some = (workbench_task(text, config, batch_size=batch_size, eval_windows=windows) for windows in (None, 64))
    curve: dict[int, float] = {}

    def watch(step: int, loss: float, params: trees.Tree) -> None:
        if step % every == 0:
            curve[step] = some.evaluate(params)["bits per character"]

    return Learned(fit(init_language_model(rng, config, std=std), whole, rng=rng, watch=watch, **settings), config, text, batch_size, curve)
