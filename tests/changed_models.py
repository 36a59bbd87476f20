"""Small whole models whose weights are changed by what is trained: what the tests of such changes share."""

from functools import partial

import numpy as np

from minitransformers import check_gradients, trees
from minitransformers.foundation import reparameterize, trusted
from minitransformers.models.gpt2 import gpt2, init_gpt2
from minitransformers.models.llama import init_llama, llama
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model

checked = trusted(partial(check_gradients, second_opinion=False))  # the shapes are known to fit
IDS = np.array([[1, 4, 0], [2, 2, 3]])
MODELS = ("gpt2", "llama", "mamba")
# Patterns that at_targets takes, and how many arrays they match.
PATTERNS = {
    "gpt2": (["query.weight", "value.weight", "feed_forward.up.weight"], 6),
    "llama": (["query.weight", "value.weight", "feed_forward.*.weight"], 10),
    "mamba": (["in_proj.weight", "x_proj.weight", "out_proj.weight", "channel.*.weight"], 5),
}


def whole_model(name, seed=0):
    """A model's parameters, and ``run(params) -> logits, backward``."""
    rng = np.random.default_rng(seed)
    sizes = {"vocabulary": 5, "d_model": 4, "num_heads": 2, "std": 0.5, "dtype": np.float64}
    if name == "gpt2":
        base = init_gpt2(rng, num_layers=2, context=4, **sizes)
        return base, partial(gpt2, ids=IDS, num_heads=2)
    if name == "llama":
        base = init_llama(rng, num_layers=2, num_kv_heads=1, d_hidden=6, **sizes)
        return base, partial(llama, ids=IDS, num_heads=2)
    options = {"mixer": {"d_state": 2, "expand": 1, "d_conv": 2}, "channel": {"d_hidden": 3}}
    config = LanguageModelConfig(
        vocabulary_size=5, context=4, d_model=4, num_layers=1, num_heads=2, mixer="mamba", position="none", options=options
    )
    base = init_language_model(rng, config, std=0.5, dtype=np.float64)
    return trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), base), partial(language_model, ids=IDS, config=config)


def changed(run, base, change):
    """The model as a function of what is trained, and of what its changes share."""

    def with_changes(trained, *shared):
        tree, back = reparameterize(trained, *shared, base=base, change=change)
        out, backward = run(tree)
        return out, lambda dout: back(backward(dout))

    return with_changes
