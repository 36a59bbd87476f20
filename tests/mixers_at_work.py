"""What every mixer must do in the workbench's language model, and small tasks that it must learn: shared by the mixers' tests.

``settings`` below are those of LanguageModelConfig: the mixer by its name, and what differs from a small model.
"""

from functools import partial

import numpy as np
import pytest

from minitransformers.models.decoding import generate, without_cache
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model, language_model_step
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Labelled

WORDS = 7
SMALL = {"vocabulary_size": WORDS, "context": 12, "d_model": 8, "num_layers": 2, "num_heads": 2, "position": "none"}


def model(seed=0, **settings):
    """Parameters in float64, and the configuration."""
    config = LanguageModelConfig(**{**SMALL, **settings})
    return init_language_model(np.random.default_rng(seed), config, std=0.3, dtype=np.float64), config


def assert_steps_equal_the_whole_pass(params, config):
    """One at a time, and in uneven pieces."""
    ids = np.random.default_rng(13).integers(config.vocabulary_size, size=(2, 11))
    whole, _ = language_model(params, ids=ids, config=config)
    for pieces in ((1,) * 11, (4, 1, 1, 5)):
        state, logits = None, []
        for piece in np.split(ids, np.cumsum(pieces)[:-1], axis=1):
            part, state = language_model_step(params, piece, state, config=config)
            logits.append(part)
        np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, rtol=0, atol=1e-10)


def assert_it_writes_the_same_without_a_state(params, config):
    steps = partial(language_model_step, params, config=config), without_cache(partial(language_model, params, config=config))
    one, other = (
        list(generate(step, prompt_ids=np.array([1, 2, 3]), num_tokens=8, rng=np.random.default_rng(0), context=config.context)) for step in steps
    )
    assert one == other


def assert_it_has_no_place_for(*positions, **settings):
    """A mask is refused by the mixer's name, and so are positions that need scores, or queries and keys."""
    params, config = model(**settings)
    name = settings["mixer"]
    with pytest.raises(ValueError, match=rf"mask: got a mask, wants None: {name} has no place for one"):
        language_model(params, ids=np.array([[1, 2, 3]]), config=config, mask=np.ones((1, 3, 3), bool))
    for position in positions:
        with pytest.raises(ValueError, match=rf"position: got {position}, .* with the mixer {name}, which takes none"):
            model(**{**settings, "position": position})


def losses(params, config, draw, *, steps, rate=0.02):
    """The loss before each update."""
    found = []
    task = Labelled(lambda params, ids: language_model(params, ids=ids, config=config), draw)
    fit(params, task, steps=steps, peak=rate, rng=np.random.default_rng(15), warmup=0.05, floor=1.0, watch=lambda step, loss, _: found.append(loss))
    return found


# The tasks ----------------------------------------------------------------------------------------------------------


def repeats(rng, *, back, positions):
    """What stood so many places back. Guessing has log WORDS."""
    ids = rng.integers(WORDS, size=(8, positions))
    targets = np.full_like(ids, IGNORED)
    targets[:, back:] = ids[:, :-back]
    return ids, targets


def last_of_three(rng):
    """Which of three words came last, among others that let it stand. Guessing among the three has log 3."""
    ids = np.where(rng.random((8, 12)) < 0.3, rng.integers(3, size=(8, 12)), rng.integers(3, WORDS, size=(8, 12)))
    ids[:, 0] = rng.integers(3, size=8)
    last = np.maximum.accumulate(np.where(ids < 3, np.arange(12), 0), axis=1)
    return ids, np.take_along_axis(ids, last, axis=1)


def last_under_a_key(rng):
    """Keys 0 to 2 and values 3 to 5 alternate, and keys come again with new values. Asked at each key: the value it had before, or 6.

    Guessing has log 3 where the key has come before.
    """
    keys, values = rng.integers(3, size=(2, 8, 6))
    ids, targets = np.stack([keys, values + 3], axis=-1).reshape(8, 12), np.full((8, 12), IGNORED)
    for text in range(8):
        last = {}
        for t, (key, value) in enumerate(zip(keys[text], values[text], strict=True)):
            targets[text, 2 * t] = last.get(key, 3) + 3
            last[key] = value
    return ids, targets
