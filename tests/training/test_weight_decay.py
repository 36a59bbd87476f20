"""Weight decay falls on what an array is, the weight of a linear map or of a convolution, and never on words in its path."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from minitransformers import catalogue, trees
from minitransformers.basics.causal_convolution import CausalConvolution, init_causal_convolution
from minitransformers.basics.embedding import Embedding, init_embedding
from minitransformers.basics.linear import Linear, init_linear
from minitransformers.compression.low_rank_linear import LowRankFactors, LowRankLinear
from minitransformers.compression.masked_weight import MaskedWeight
from minitransformers.compression.movement_pruning import ScoredWeight
from minitransformers.compression.n_m_linear import NmLinear
from minitransformers.compression.sparse_linear import SparseLinear
from minitransformers.linear_attention.rwkv7 import ThinMap
from minitransformers.long_context.attentive_pooling import AttentivePooling
from minitransformers.models.gpt2 import init_gpt2
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model
from minitransformers.norms.layer_norm import init_layer_norm
from minitransformers.positional.learned import init_learned
from minitransformers.state_space.mamba import init_mamba
from minitransformers.state_space.s4d import init_s4d
from minitransformers.training.update import Learner

RNG = np.random.default_rng(0)


class LowRank(NamedTuple):
    down: Any
    up: Any


class Prefix(NamedTuple):
    key: Any
    value: Any


class VisionModel(NamedTuple):
    """Things of many kinds under names that mislead."""

    weight: Any                # a class token
    weights: Any               # memory slots
    linear: Any                # the keys and values of a prefix
    lora: Any
    embedding: Any             # a linear map of patches
    position: Any
    norm: Any                  # a linear map that is called a norm
    gains: Any
    blocks: list[Any]
    head: Any


def everything():
    return VisionModel(
        weight=np.ones((1, 4)),
        weights=np.ones((3, 4)),
        linear=Prefix(np.ones((2, 3, 4)), np.ones((2, 3, 4))),
        lora=LowRank(np.ones((4, 1)), np.ones((1, 4))),
        embedding=init_linear(RNG, 4, 4, dtype=np.float64),
        position=init_learned(RNG, 4, max_positions=3, dtype=np.float64),
        norm=init_linear(RNG, 4, 4, bias=False, dtype=np.float64),
        gains=init_layer_norm(RNG, 4, dtype=np.float64),
        blocks=[init_mamba(RNG, 4, d_state=2, dtype=np.float64), init_s4d(RNG, 4, d_state=4, dtype=np.float64),
                init_causal_convolution(RNG, 4, width=3, dtype=np.float64), init_embedding(RNG, 5, 4, dtype=np.float64)],
        head=init_linear(RNG, 4, 5, dtype=np.float64),
    )  # fmt: skip


def test_exactly_the_weights_of_linear_maps_and_convolutions_decay_whatever_they_are_called():
    assert set(trees.decayed(everything())) == {
        "embedding.weight", "norm.weight", "head.weight", "blocks.2.weight",
        "blocks.0.in_proj.weight", "blocks.0.conv.weight", "blocks.0.x_proj.weight", "blocks.0.dt_proj.weight", "blocks.0.out_proj.weight",
    }  # fmt: skip


def test_an_update_without_a_gradient_shrinks_those_and_touches_nothing_else():
    params = everything()
    learner, shrinking = Learner(params, weight_decay=0.5), set(trees.decayed(params))
    learner.optimizer.step(learner.gradient, learning_rate=0.1)
    for (path, after), (_, before) in zip(trees.leaves(learner.params.tree), trees.leaves(params), strict=True):
        np.testing.assert_allclose(after, 0.95 * before if path in shrinking else before, rtol=1e-15, atol=0, err_msg=path)


MAPS = {
    Linear: {"weight"}, CausalConvolution: {"weight"}, ThinMap: {"low", "high"}, LowRankFactors: {"down", "up"}, LowRankLinear: {"down", "up"},
    AttentivePooling: {"weight"}, MaskedWeight: {"weight"}, ScoredWeight: {"weight"}, SparseLinear: {"values"}, NmLinear: {"values"},
}  # fmt: skip


def expected(tree, path=""):
    """The rule, walked once more: what holds the weight of a linear map or a convolution, dense, thin or with zeros left out."""
    for name, child in trees.children(tree) or []:
        place = f"{path}.{name}" if path else name
        if name in MAPS.get(type(tree), ()):
            yield place
        yield from expected(child, place)


@pytest.mark.parametrize("name", [name for name, entry in catalogue.concepts().items() if entry.chapter != "models"])
def test_the_rule_holds_for_the_parameters_of_every_concept(name):
    for tree in catalogue.find(name).example(np.random.default_rng(0)).args:
        assert set(trees.decayed(tree)) == set(expected(tree))


@pytest.mark.parametrize("tied", [True, False])
def test_the_embedding_never_decays_and_a_head_of_its_own_does(tied):
    params = init_language_model(RNG, LanguageModelConfig(7, d_model=8, num_layers=1, tied=tied))
    decayed = set(trees.decayed(params))
    assert "embedding.weight" not in decayed and ("head.weight" in decayed) is not tied
    block = {"mixer.query", "mixer.key", "mixer.value", "mixer.output", "channel.up", "channel.down"}
    assert decayed - {"head.weight"} == {f"blocks.0.{part}.weight" for part in block}


def test_the_weights_of_gpt2_decay_and_its_tables_norms_and_biases_do_not():
    params = init_gpt2(RNG, vocabulary=7, context=5, d_model=8, num_layers=2, num_heads=2)
    parts = {"attention.query", "attention.key", "attention.value", "attention.output", "feed_forward.up", "feed_forward.down"}
    assert set(trees.decayed(params)) == {f"blocks.{i}.{part}.weight" for i in range(2) for part in parts}


def test_rates_and_states_of_a_recurrence_do_not_decay():
    for mixer in ("mamba", "mamba2", "s4d"):
        params = init_language_model(RNG, LanguageModelConfig(7, d_model=8, num_layers=1, mixer=mixer))
        decayed = {path for path in trees.decayed(params) if ".mixer." in path}
        assert all(path.endswith("proj.weight") or path.endswith("conv.weight") for path in decayed), decayed
        assert not any(part in path for path in decayed for part in ("A_log", "log_A_real", "A_imag", ".C", ".D", "dt_bias"))


def test_a_lone_embedding_is_a_table():
    assert list(trees.decayed(Embedding(np.ones((3, 4))))) == []
    assert list(trees.decayed(Linear(np.ones((3, 4)), np.ones(4)))) == ["weight"]
    assert list(trees.decayed([np.ones((3, 4)), (np.ones((3, 4)), None)])) == []
