"""Small models of parts chosen by name, which the tests of the workbench share."""

import inspect

import numpy as np

from minitransformers import catalogue, check_gradients, trees
from minitransformers.foundation import trusted
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model, language_model_step

# Options that a part needs, or that keep it small.
NEEDED = {
    "grouped_query_attention": {"num_kv_heads": 1},
    "sliding_window_attention": {"window": 3, "num_kv_heads": 1},
    "mamba": {"d_state": 2, "expand": 1, "d_conv": 2},
    "mamba2": {"d_state": 2, "expand": 1, "d_conv": 2},
    "bmojo": {"window": 1, "memory": 1, "d_state": 1, "expand": 1, "d_conv": 2},
    "samba": {"window": 2, "d_state": 2},
    "zamba": {"every": 1, "d_state": 2},
    "rope_linear": {"factor": 2.5},
    "rope_ntk": {"factor": 2.5},
    "rope_partial": {"rotary_dim": 2},
    "banded_attention": {"window": 2},
    "banded_attention_blocks": {"window": 2},
    "soft_capped_attention": {"cap": 0.7},
    "shaw": {"reach": 2},
    "causal_longformer_attention": {"window": 2, "global_positions": [1]},
    "local_global_attention": {"window": 2},
    "local_global_attention_blocks": {"window": 2},
    "strided": {"stride": 2},
    "strided_fast": {"stride": 2},
    "fixed_attention": {"stride": 2},
    "fixed_attention_fast": {"stride": 2},
    "linformer": {"rank": 2},
    "big_bird": {"block": 1, "num_random": 0},
    "big_bird_blocks": {"block": 1, "num_random": 0},
    "moba": {"block": 1, "top": 2},
    "native_sparse_attention": {"block": 2, "top": 2, "window": 2},
}

ATTENTIONS = ("multi_head_attention", "grouped_query_attention", "sliding_window_attention")

# Cores that see the whole text, those that compute what attention without them computes, and those whose pattern counts from the first key,
# so that what is cut off in front of it (a window's past) or put there (padding) changes who sees whom.
WHOLE_TEXT = {"linformer"}
EXACT = {"flash_attention", "causal_flash_attention"}
FROM_THE_FIRST = {"fixed_attention", "fixed_attention_fast", "big_bird", "big_bird_blocks", "moba"}

checked = trusted(check_gradients)  # the shapes are known to fit


def config(options=None, **changes):
    settings = {"vocabulary_size": 5, "context": 6, "d_model": 4, "num_layers": 2, "num_heads": 2}
    return LanguageModelConfig(**{**settings, **changes}, options={"channel": {"d_hidden": 3}, **(options or {})})


def model(seed=0, **changes):
    """Parameters of which none is where it started, and the configuration."""
    chosen, rng = config(**changes), np.random.default_rng(seed)
    return with_noise(init_language_model(rng, chosen, dtype=np.float64), rng), chosen


def with_noise(params, rng, size=0.3):
    return trees.map(lambda leaf: leaf + size * rng.normal(size=leaf.shape), params)


def in_slot(slot, name, mixer="multi_head_attention", **more):
    """The changes that put a concept into a slot of a mixer."""
    options = {slot: name, **{f"{slot}.{option}": value for option, value in NEEDED.get(name, {}).items()}}
    return {"mixer": mixer, "options": {"mixer": {**NEEDED.get(mixer, {}), **options, **more}}}


def slots_and_names():
    """Every concept that fits into a slot of attention that looks back only."""
    return [(slot, name) for slot in ("core", "prepare") for name in catalogue.concepts(role=slot) if name not in WHOLE_TEXT]


def mixers_with(argument):
    """The mixers that take an argument of that name."""
    return [name for name, entry in catalogue.concepts(role="mixer").items() if argument in inspect.signature(entry.function).parameters]


def decoded(params, chosen, ids, pieces):
    """The logits, a few positions at a time, from what was kept of those before."""
    state, logits, start = None, [], 0
    for size in pieces:
        part, state = language_model_step(params, ids[:, start : start + size], state, config=chosen)
        logits.append(part)
        start += size
    return np.concatenate(logits, axis=1)


def assert_gradients_are_right(params, chosen, *, positions=4, batch=2, **settings):
    ids = np.random.default_rng(1).integers(chosen.vocabulary_size, size=(batch, positions))
    report = checked(language_model, params, ids=ids, config=chosen, second_opinion=False, **settings)
    assert report.passed, str(report)


def assert_gradients_are_right_along_directions(params, chosen, *, positions=4, count=3):
    """The slope of the loss along random directions, in which all parameters move at once: whatever is wrong anywhere shows in it.

    It says that something is wrong, where assert_gradients_are_right says what, at a hundredth of the price.
    """
    rng, h = np.random.default_rng(2), 1e-4
    ids = rng.integers(chosen.vocabulary_size, size=(1, positions))
    logits, backward = language_model(params, ids=ids, config=chosen)
    dlogits = rng.normal(size=logits.shape)
    gradient = dict(trees.leaves(backward(dlogits)))
    for _ in range(count):
        direction = trees.map(lambda leaf: rng.normal(size=leaf.shape), params)

        def moved(by, direction=direction):
            return np.sum(dlogits * whole(trees.map(lambda leaf, along: leaf + by * h * along, params, direction), chosen, ids))

        slope = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * h)
        expected = sum(float(np.sum(gradient[path] * along)) for path, along in trees.leaves(direction))
        np.testing.assert_allclose(expected, slope, rtol=1e-6)


def whole(params, chosen, ids, **settings):
    return language_model(params, ids=ids, config=chosen, **settings)[0]
