"""How far each layer turns the stream, and stacks without the layers that hardly do."""

from itertools import pairwise

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.basics.embedding import embedding
from minitransformers.compression.layer_pruning import block_influence, without_layers
from minitransformers.models.gpt2 import gpt2, gpt2_block, gpt2_step, gpt2_weights, init_gpt2
from minitransformers.models.llama import init_llama, llama, llama_block, llama_step
from minitransformers.norms.layer_norm import layer_norm
from minitransformers.positional.learned import learned

RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(4, 2, 5, 3))
MASK = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], bool)
IDS = np.array([[1, 4, 0], [2, 2, 3]])


def one_by_one(states, mask):
    """The cosine of each token in each layer, by sums, and the mean over the tokens that count."""
    influence = []
    for before, after in pairwise(states):
        cosines = []
        for place in np.ndindex(mask.shape):
            if mask[place]:
                x, y = before[place], after[place]
                dot, square, other = (sum(a * b for a, b in zip(*pair, strict=True)) for pair in ((x, y), (x, x), (y, y)))
                cosines.append(dot / (square * other) ** 0.5)
        influence.append(1 - sum(cosines) / len(cosines))
    return np.array(influence)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all tokens", "some"])
def test_it_is_one_less_the_mean_cosine_of_the_tokens_that_count(mask):
    expected = one_by_one(STATES, np.ones((2, 5), bool) if mask is None else mask)
    np.testing.assert_allclose(block_influence(STATES, mask=mask), expected, rtol=0, atol=1e-12)


def test_what_does_not_count_is_not_read():
    other = STATES.copy()
    other[:, ~MASK] = 0.0
    np.testing.assert_array_equal(block_influence(other, mask=MASK), block_influence(STATES, mask=MASK))


def test_it_is_zero_for_the_same_direction_one_for_a_right_angle_and_two_for_the_opposite():
    states = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, -1.0]])
    np.testing.assert_array_equal(block_influence(states), [0.0, 1.0, 2.0])


@pytest.mark.parametrize("size", [1e-3, 1e3, 1e-160, 1e160])
def test_lengths_do_not_matter_not_even_extreme_ones(size):
    lengths = size * RNG.uniform(0.5, 2, size=(4, 2, 5, 1))
    np.testing.assert_allclose(block_influence(lengths * STATES), block_influence(STATES), rtol=0, atol=1e-13)


def test_a_mean_over_tokens_is_not_a_cosine_of_all_tokens_together():
    """A plausible mistake: one cosine between two long vectors, in which long tokens count more."""
    states = STATES * np.array([1.0, 100.0])[:, None, None]
    flat = states.reshape(4, -1)
    together = 1 - np.array([x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in pairwise(flat)])
    np.testing.assert_allclose(block_influence(states), block_influence(STATES), rtol=0, atol=1e-13)
    assert np.abs(together - block_influence(states)).max() > 0.05


def test_parts_of_a_large_batch_are_averaged_by_their_tokens():
    parts = [block_influence(STATES[:, n : n + 1], mask=MASK[n : n + 1]) for n in range(2)]
    together = (5 * parts[0] + 3 * parts[1]) / 8
    np.testing.assert_allclose(together, block_influence(STATES, mask=MASK), rtol=0, atol=1e-14)


def noisy(params):
    rng = np.random.default_rng(1)
    return trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params)


SIZES = {"vocabulary": 5, "d_model": 4, "num_layers": 4, "num_heads": 2, "std": 0.5, "dtype": np.float64}
GPT2 = noisy(init_gpt2(np.random.default_rng(2), context=3, **SIZES))
LLAMA = noisy(init_llama(np.random.default_rng(3), d_hidden=6, tied=True, **SIZES))
MODELS = {"gpt2": (GPT2, gpt2, gpt2_step), "llama": (LLAMA, llama, llama_step)}


def silent(block):
    """The block with both branches multiplied by 0: what goes in comes out."""
    def off(linear):
        return trees.map(np.zeros_like, linear)

    attention, network = block.attention, block.feed_forward
    return block._replace(attention=attention._replace(output=off(attention.output)), feed_forward=network._replace(down=off(network.down)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kept", [[0, 1, 3], [2], [3, 0], [0, 1, 2, 3]], ids=str)
def test_a_model_without_layers_is_the_one_whose_layers_write_nothing(name, kept):
    params, model, step = MODELS[name]
    blocks = [block if layer in kept else silent(block) for layer, block in enumerate(params.blocks)]
    expected, _ = model(params._replace(blocks=blocks), ids=IDS, num_heads=2)
    smaller = params._replace(blocks=without_layers(params.blocks, kept=kept))
    np.testing.assert_allclose(model(smaller, ids=IDS, num_heads=2)[0], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(step(smaller, IDS, None, num_heads=2)[0], expected, rtol=0, atol=1e-12)


def test_the_parameters_fall_by_a_block_each():
    smaller = GPT2._replace(blocks=without_layers(GPT2.blocks, kept=[0, 3]))
    assert trees.count_parameters(GPT2) - trees.count_parameters(smaller) == 2 * (12 * 4**2 + 13 * 4)


def test_blocks_are_handed_on_and_stay_in_their_order():
    assert [block is GPT2.blocks[layer] for block, layer in zip(without_layers(GPT2.blocks, kept=[3, 1]), (1, 3), strict=True)] == [True, True]
    assert len(GPT2.blocks) == 4


def gpt2_states(params, ids):
    """The stream before the first block and after each."""
    states = [learned(params.positions, embedding(params.embedding, ids=ids)[0])[0]]
    for block in params.blocks:
        states.append(gpt2_block(block, states[-1], num_heads=2)[0])
    return np.stack(states)


def llama_states(params, ids):
    states = [embedding(params.embedding, ids=ids)[0]]
    for block in params.blocks:
        states.append(llama_block(block, states[-1], num_heads=2)[0])
    return np.stack(states)


@pytest.mark.parametrize(("params", "states_of"), [(GPT2, gpt2_states), (LLAMA, llama_states)], ids=["gpt2", "llama"])
def test_in_a_model_a_layer_that_writes_nothing_has_influence_zero_and_can_go(params, states_of):
    blocks = [silent(block) if layer == 2 else block for layer, block in enumerate(params.blocks)]
    influence = block_influence(states_of(params._replace(blocks=blocks), IDS))
    assert abs(influence[2]) < 1e-15 and np.delete(influence, 2).min() > 1e-3


def test_what_cannot_be_is_refused():
    for kept, words in (([], "no layers"), ([0, 4], "got 4, wants layers from 0 to 3"), ([-1, 2], "got -1"), ([2, 2], "at most once")):
        with pytest.raises(ValueError, match=f"kept: .*{words}"):
            without_layers(GPT2.blocks, kept=kept)
    with pytest.raises(ValueError, match="states: got 1 of them"):
        block_influence(STATES[:1])
    with pytest.raises(ValueError, match="mask: got no token"):
        block_influence(STATES, mask=~np.ones((2, 5), bool))
    with pytest.raises(ValueError, match="states: got a vector of zeros"):
        block_influence(STATES * np.arange(5)[:, None])
    with pytest.raises(ValueError, match="states: got numbers"):
        block_influence(np.where(STATES > 1, np.nan, STATES))


@pytest.mark.parity
def test_scores_are_those_of_torch_on_hugging_face_s_states_but_for_the_last():
    """There the last state stands behind the final norm, and the authors' code takes it as it is."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    settings = {"vocab_size": 5, "n_positions": 3, "n_embd": 4, "n_layer": 4, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings, attn_implementation="eager")).double().eval()
    model.load_state_dict({name: torch.tensor(array) for name, array in gpt2_weights(GPT2).items()}, strict=False)
    with torch.no_grad():
        theirs = model(torch.tensor(IDS), output_hidden_states=True).hidden_states
    scores = [1 - torch.nn.functional.cosine_similarity(*pair, dim=-1).mean().item() for pair in pairwise(theirs)]
    own = gpt2_states(GPT2, IDS)
    np.testing.assert_allclose(block_influence(own)[:3], scores[:3], rtol=0, atol=1e-9)
    normed = np.concatenate([own[:4], layer_norm(GPT2.norm, own[4])[0][None]])
    np.testing.assert_allclose(block_influence(normed), scores, rtol=0, atol=1e-9)
    assert abs(block_influence(own)[3] - scores[3]) > 1e-2
