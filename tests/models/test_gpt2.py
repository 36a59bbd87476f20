"""GPT-2 as a choice of parts: Hugging Face's weights go in, and logits and every gradient come out equal."""

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.models.gpt2 import gpt2_config, gpt2_weights, load_gpt2
from minitransformers.models.language_model import init_language_model, language_model


def random_weights(seed=0, *, layers=2, hidden=None):
    config = gpt2_config(vocabulary_size=13, context=9, d_model=8, num_layers=layers, num_heads=2)
    rng = np.random.default_rng(seed)
    params = trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), init_language_model(rng, config, dtype=np.float64))
    return gpt2_weights(params), params, config


def test_weights_survive_the_way_out_and_in():
    weights, params, config = random_weights()
    again, config_again = load_gpt2(weights, num_heads=2)
    assert config_again == config
    for (path, a), (_, b) in zip(trees.leaves(params), trees.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)


def test_prefix_buffers_and_the_repeated_head_do_not_matter():
    weights, params, _ = random_weights()
    bare = {name.removeprefix("transformer."): array for name, array in weights.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 9, 9))
    bare["lm_head.weight"] = bare["wte.weight"]
    again, _ = load_gpt2(bare, num_heads=2)
    np.testing.assert_array_equal(again.blocks[0].mixer.key.weight, params.blocks[0].mixer.key.weight)


def test_a_safetensors_file_is_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    weights, params, _ = random_weights()
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    again, _ = load_gpt2(tmp_path / "model.safetensors", num_heads=2)
    np.testing.assert_array_equal(again.blocks[1].channel.up.weight, params.blocks[1].channel.up.weight)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda w: w.pop("transformer.h.1.ln_2.bias"), "missing h.1.ln_2.bias"),
        (lambda w: w.update({"transformer.h.0.extra": np.ones(2)}), "unexpected h.0.extra"),
        (lambda w: w.update({"transformer.h.0.mlp.c_proj.weight": np.ones((3, 3))}), "h.0.mlp.c_proj.weight is"),
        (lambda w: w.pop("transformer.wte.weight"), "wte.weight"),
        (lambda w: w.update({"lm_head.weight": 2 * w["transformer.wte.weight"]}), "lm_head.weight of its own"),
        (lambda w: w.update({"wte.weight": w["transformer.wte.weight"]}), "with and without transformer."),
    ],
)
def test_weights_of_something_else_are_refused_by_name(spoil, says):
    weights, _, _ = random_weights()
    spoil(weights)
    with pytest.raises(ValueError, match=says):
        load_gpt2(weights, num_heads=2)


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_that_do_not_divide_are_refused(heads):
    with pytest.raises(ValueError, match="num_heads"):
        load_gpt2(random_weights()[0], num_heads=heads)


@pytest.mark.parity
@pytest.mark.parametrize(("layers", "heads", "width"), [(2, 2, 8), (3, 4, 12)])
def test_logits_and_every_gradient_equal_hugging_face(layers, heads, width):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs_config = transformers.GPT2Config(
        vocab_size=17, n_positions=11, n_embd=width, n_layer=layers, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(theirs_config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    params, config = load_gpt2({name: p.detach().numpy() for name, p in theirs.state_dict().items()}, num_heads=heads)
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(17, size=(3, 10)), rng.integers(17, size=(3, 10))

    expected = theirs(torch.tensor(ids)).logits
    torch.nn.functional.cross_entropy(expected.reshape(-1, 17), torch.tensor(targets).reshape(-1)).backward()
    logits, backward = language_model(params, ids=ids, config=config)
    _, loss_backward = cross_entropy(logits, targets=targets)
    grads = gpt2_weights(backward(loss_backward(np.float64(1))))

    np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-10)
    checked = 0
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(grads[name], parameter.grad.numpy(), atol=1e-10, err_msg=name)
        checked += 1
    assert checked == len(grads)
