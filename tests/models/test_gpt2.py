"""GPT-2 as itself: equal to its formula, to the workbench's model of the same parts and to Hugging Face; weights in and out."""

import json
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.attention.masks import padding_mask
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import Embedding
from minitransformers.basics.linear import Linear
from minitransformers.foundation.safetensors import read_safetensors
from minitransformers.models.decoding import generate, without_cache
from minitransformers.models.gpt2 import Gpt2, Gpt2Block, gpt2, gpt2_step, gpt2_weights, init_gpt2, load_gpt2
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import LanguageModel, language_model
from minitransformers.models.workbench.transformer_block import TransformerBlock
from minitransformers.positional.learned import Learned


def random_model(seed=0, *, num_layers=2, d_model=8, num_heads=2, vocabulary=13, context=9):
    rng = np.random.default_rng(seed)
    params = init_gpt2(rng, vocabulary=vocabulary, context=context, d_model=d_model, num_layers=num_layers, num_heads=num_heads, dtype=np.float64)
    return trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params)


def random_weights(seed=0, **sizes):
    params = random_model(seed, **sizes)
    return gpt2_weights(params), params


IDS = np.random.default_rng(1).integers(13, size=(3, 7))


def textbook(params, ids, num_heads):
    """GPT-2 as a formula, one text at a time, heads in a loop, softmax by its definition."""

    def norm(p, x):
        mean = anp.mean(x, axis=-1, keepdims=True)
        return p.gain * (x - mean) / anp.sqrt(anp.mean((x - mean) ** 2, axis=-1, keepdims=True) + 1e-5) + p.bias

    def attention(p, x):
        q, k, v = (x @ part.weight + part.bias for part in p[:3])
        width, heads = q.shape[-1] // num_heads, []
        for h in range(num_heads):
            cut, rows = slice(h * width, (h + 1) * width), []
            for i in range(len(x)):
                e = anp.exp(k[: i + 1, cut] @ q[i, cut] / anp.sqrt(width))
                rows.append(e @ v[: i + 1, cut] / anp.sum(e))
            heads.append(anp.stack(rows))
        return anp.concatenate(heads, axis=-1) @ p.output.weight + p.output.bias

    def mlp(p, x):
        h = x @ p.up.weight + p.up.bias
        return (h / 2 * (1 + anp.tanh(anp.sqrt(2 / anp.pi) * (h + 0.044715 * h**3)))) @ p.down.weight + p.down.bias

    out = []
    for text in ids:
        x = params.embedding.weight[text] + params.positions.table[: len(text)]
        for b in params.blocks:
            x = x + attention(b.attention, norm(b.attention_norm, x))
            x = x + mlp(b.feed_forward, norm(b.feed_forward_norm, x))
        out.append(norm(params.norm, x) @ params.embedding.weight.T)
    return anp.stack(out)


def test_equals_the_formula_in_outputs_and_gradients():
    params, dlogits = random_model(), np.random.default_rng(2).normal(size=(3, 7, 13))
    logits, backward = gpt2(params, ids=IDS, num_heads=2)
    np.testing.assert_allclose(logits, textbook(params, IDS, 2), rtol=0, atol=1e-10)
    leaves = [leaf for _, leaf in trees.leaves(params)]
    expected = autograd.grad(lambda values: anp.sum(dlogits * textbook(trees.unflatten(params, values), IDS, 2)))(leaves)
    for (path, own), theirs in zip(trees.leaves(backward(dlogits)), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def test_gradients_are_right():
    params = random_model(3, d_model=4, vocabulary=5, context=4, num_layers=1)
    report = check_gradients(gpt2, params, ids=np.array([[1, 4, 1], [0, 2, 2]]), num_heads=2)
    assert report.passed, str(report)


@pytest.mark.parametrize("forgotten", ["as the table that is read", "as the head"])
def test_an_embedding_that_forgets_one_of_its_two_gradients_is_refused(forgotten):
    params = random_model(4, d_model=4, vocabulary=5, context=4, num_layers=1)
    untied = workbench_config(params, tied=False)

    def forgetful(params, *, ids):
        logits, backward = gpt2(params, ids=ids, num_heads=2)
        _, separate = language_model(workbench(params)._replace(head=Linear(params.embedding.weight.T.copy(), None)), ids=ids, config=untied)

        def wrong(dlogits):
            own, parts = backward(dlogits), separate(dlogits)
            read, head = parts.embedding.weight, parts.head.weight.T
            np.testing.assert_allclose(own.embedding.weight, read + head, rtol=0, atol=1e-12)
            return own._replace(embedding=Embedding(read if forgotten == "as the head" else head))

        return logits, wrong

    report = check_gradients(forgetful, params, ids=np.array([[1, 4, 1]]), second_opinion=False)
    assert not report.passed
    assert report.worst.path == "params.embedding.weight"


def workbench(params):
    """The same parameters as the workbench holds them."""
    return LanguageModel(params.embedding, params.positions, [TransformerBlock(*block) for block in params.blocks], params.norm, None)


def workbench_config(params, *, num_heads=2, **changes):
    vocabulary, d_model = params.embedding.weight.shape
    sizes = {"vocabulary_size": vocabulary, "context": len(params.positions.table), "d_model": d_model, "num_layers": len(params.blocks)}
    return LanguageModelConfig(**sizes, num_heads=num_heads, **changes)


def test_is_the_workbenchs_model_of_the_same_parts():
    params, dlogits = random_model(5), np.random.default_rng(6).normal(size=(3, 7, 13))
    logits, backward = gpt2(params, ids=IDS, num_heads=2)
    theirs, their_backward = language_model(workbench(params), ids=IDS, config=workbench_config(params))
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=1e-13)
    expected = their_backward(dlogits)
    same_form = Gpt2(expected.embedding, expected.position, [Gpt2Block(*block) for block in expected.blocks], expected.final_norm)
    trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), backward(dlogits), same_form)


def test_starts_as_the_workbenchs_model_does():
    sizes = {"d_model": 64, "num_layers": 8, "num_heads": 4}
    params = init_gpt2(np.random.default_rng(7), vocabulary=11, context=64, **sizes)
    for block in params.blocks:
        assert abs(block.attention.output.weight.std() / (0.02 / 4) - 1) < 0.1
        assert abs(block.feed_forward.down.weight.std() / (0.02 / 4) - 1) < 0.1
        assert abs(block.feed_forward.up.weight.std() / 0.02 - 1) < 0.1
        assert not block.feed_forward.up.bias.any()
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}
    ids, targets = np.random.default_rng(8).integers(11, size=(2, 4, 64))
    loss, _ = cross_entropy(gpt2(params, ids=ids, num_heads=4)[0], targets=targets)
    assert abs(float(loss) - np.log(11)) < 0.05


def test_the_smallest_size_has_the_published_number_of_parameters():
    d, layers, vocabulary, context = 768, 12, 50257, 1024
    per_block = 4 * d * d + 4 * d + 8 * d * d + 5 * d + 4 * d
    assert vocabulary * d + context * d + layers * per_block + 2 * d == 124_439_808
    d, layers = 8, 3
    per_block = 4 * d * d + 4 * d + 8 * d * d + 5 * d + 4 * d
    params = init_gpt2(np.random.default_rng(0), vocabulary=7, context=6, d_model=d, num_layers=layers, num_heads=2)
    assert trees.count_parameters(params) == 7 * d + 6 * d + layers * per_block + 2 * d


@pytest.mark.parametrize("pieces", [(1,) * 7, (4, 1, 2), (7,)])
def test_step_by_step_is_the_whole_pass(pieces):
    params = random_model(9)
    whole, _ = gpt2(params, ids=IDS, num_heads=2)
    state, logits, start = None, [], 0
    for size in pieces:
        part, state = gpt2_step(params, IDS[:, start : start + size], state, num_heads=2)
        logits.append(part)
        start += size
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, rtol=0, atol=1e-12)
    assert state.length == 7


def test_it_writes_the_same_text_with_and_without_a_cache_even_past_the_context():
    params, settings = random_model(10), {"prompt_ids": np.array([1, 2, 3]), "num_tokens": 25, "context": 9, "vocabulary_size": 13}
    cached = list(generate(partial(gpt2_step, params, num_heads=2), rng=np.random.default_rng(0), **settings))
    plain = list(generate(without_cache(partial(gpt2, params, num_heads=2)), rng=np.random.default_rng(0), **settings))
    assert cached == plain and len(cached) == 25


def test_a_step_past_the_context_is_refused():
    params = random_model(11)
    _, state = gpt2_step(params, np.zeros((1, 9), int), None, num_heads=2)
    with pytest.raises(ValueError, match="ids: got 10 positions, wants at most the context of 9"):
        gpt2_step(params, np.zeros((1, 1), int), state, num_heads=2)


def test_a_padded_batch_decodes_as_it_is_read_at_once():
    params, ids = random_model(12), IDS[:, :6]
    mask = padding_mask(np.array([4, 6, 1]), 6)[..., ::-1]  # padded left by 2, 0 and 5
    every, state, logits = np.broadcast_to(mask, (3, 1, 6, 6)), None, []
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        part, state = gpt2_step(params, ids[:, start:stop], state, num_heads=2, mask=every[..., start:stop, :stop])
        logits.append(part)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), gpt2(params, ids=ids, num_heads=2, mask=mask)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_keys_change_nothing(side):
    """Padded left, a text stands further on in the table of positions: the table is moved with it."""
    params, text = random_model(12), IDS[:, :4]
    noise, mask = IDS[:, 4:6], padding_mask(np.array([4, 4, 4]), 6)
    if side == "right":
        ids, real = np.concatenate([text, noise], axis=1), slice(0, 4)
        alone, alone_backward = gpt2(params, ids=text, num_heads=2)
    else:
        ids, mask, real = np.concatenate([noise, text], axis=1), mask[..., ::-1], slice(2, 6)
        moved = params._replace(positions=Learned(params.positions.table[2:]))
        alone, alone_backward = gpt2(moved, ids=text, num_heads=2)
        assert np.abs(gpt2(params, ids=ids, num_heads=2)[0][:, real] - alone).max() > 1e-3  # the padding would have been read
    logits, backward = gpt2(params, ids=ids, num_heads=2, mask=mask)
    np.testing.assert_allclose(logits[:, real], alone, rtol=0, atol=1e-12)
    dlogits, dpadded = np.random.default_rng(13).normal(size=alone.shape), np.zeros_like(logits)
    dpadded[:, real] = dlogits
    found, expected = backward(dpadded), alone_backward(dlogits)
    if side == "left":
        assert not found.positions.table[:2].any()
        found = found._replace(positions=Learned(found.positions.table[2:]))
    trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), found, expected)


def test_gradients_under_a_mask_are_right():
    params = random_model(14, d_model=4, vocabulary=5, context=4, num_layers=1)
    mask = np.random.default_rng(15).random((2, 2, 3, 3)) < 0.6
    report = check_gradients(gpt2, params, ids=np.array([[1, 4, 1], [0, 2, 2]]), num_heads=2, mask=mask, second_opinion=False)
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads: got 0"),
        ({"num_heads": 3}, "num_heads: got 3"),
        ({"ids": np.array([[0, 13]])}, "ids"),
        ({"ids": np.array([[0.0]])}, "ids"),
        ({"ids": np.zeros((1, 10), int)}, "positions|context|x"),
        ({"mask": np.ones((3, 1, 1, 6), bool)}, "mask"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        gpt2(random_model(), **{"ids": IDS, "num_heads": 2, **changes})


def test_weights_survive_the_way_out_and_in():
    weights, params = random_weights()
    trees.map(np.testing.assert_array_equal, load_gpt2(weights), params)
    assert weights["transformer.h.1.attn.c_attn.weight"].shape == (8, 24)


def test_another_width_of_the_hidden_features_is_read_off_the_arrays():
    weights, _ = random_weights()
    rng = np.random.default_rng(16)
    for i in range(2):
        weights[f"transformer.h.{i}.mlp.c_fc.weight"], weights[f"transformer.h.{i}.mlp.c_fc.bias"] = rng.normal(size=(8, 5)), rng.normal(size=5)
        weights[f"transformer.h.{i}.mlp.c_proj.weight"] = rng.normal(size=(5, 8))
    params = load_gpt2(weights)
    np.testing.assert_allclose(gpt2(params, ids=IDS, num_heads=2)[0], textbook(params, IDS, 2), rtol=0, atol=1e-10)


def test_prefix_buffers_and_the_repeated_head_do_not_matter():
    weights, params = random_weights()
    bare = {name.removeprefix("transformer."): array for name, array in weights.items()}
    bare["h.0.attn.bias"], bare["h.1.attn.masked_bias"] = np.ones((1, 1, 9, 9)), np.array(-1e4)
    bare["lm_head.weight"] = bare["wte.weight"]
    trees.map(np.testing.assert_array_equal, load_gpt2(bare), params)


def test_a_safetensors_file_is_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    weights, params = random_weights()
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    for place in (tmp_path / "model.safetensors", str(tmp_path / "model.safetensors"), tmp_path):
        trees.map(np.testing.assert_array_equal, load_gpt2(place), params)


@pytest.fixture
def sharded(tmp_path):
    """A model in two files and their index, by the reference library; and its parameters."""
    safetensors = pytest.importorskip("safetensors.numpy")
    weights, params = random_weights()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        safetensors.save_file({name: weights[name] for name in held}, tmp_path / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path, params


def test_a_model_in_several_files_is_read_by_its_index(sharded):
    folder, params = sharded
    for place in (folder, folder / "model.safetensors.index.json"):
        trees.map(np.testing.assert_array_equal, load_gpt2(place), params)


@pytest.mark.parity
def test_a_model_that_hugging_face_saved_in_several_files_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=17, n_positions=11, n_embd=8, n_layer=2, n_head=2)).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    params = load_gpt2(tmp_path)
    own, expected = gpt2_weights(params), dict(theirs.named_parameters())
    assert own.keys() == expected.keys()
    for name, parameter in expected.items():
        np.testing.assert_array_equal(own[name], parameter.detach().numpy(), err_msg=name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("transformer.h.1.ln_2.bias"), r"missing h\.1\.ln_2\.bias"),
        (lambda w: w.pop("transformer.h.1.ln_1.weight"), r"got missing h\.1\.ln_1\.weight, wants"),
        (lambda w: w.update({"transformer.h.0.extra": np.ones(2)}), r"unexpected h\.0\.extra"),
        (lambda w: w.update({"transformer.h.123456789.extra": np.ones(2)}), r"missing h\.10\.attn.*unexpected h\.123456789\.extra"),
        (lambda w: w.update({"transformer.h.0.mlp.c_proj.weight": np.ones((3, 3))}), r"h\.0\.mlp\.c_proj\.weight of shape \(3, 3\), wants .*d_in = 32"),
        (lambda w: w.update({"transformer.h.1.ln_2.weight": np.ones(7)}), r"h\.1\.ln_2\.weight of shape \(7,\), wants .*d_model = 8"),
        (lambda w: w.update({"transformer.h.0.mlp.c_fc.weight": w["transformer.h.0.mlp.c_fc.weight"].T}), r"h\.0\.mlp\.c_fc\.weight of shape \(32, 8\)"),
        (lambda w: w.update({"transformer.h.0.attn.c_attn.weight": np.ones((8, 23))}), r"h\.0\.attn\.c_attn\.weight of shape \(8, 23\), wants 3 equal parts"),
        (lambda w: w.update({"transformer.h.0.attn.c_attn.bias": np.array(1.0)}), r"h\.0\.attn\.c_attn\.bias of shape \(\), wants 3 equal parts"),
        (lambda w: w.update({"transformer.wpe.weight": np.ones((9, 7))}), r"wpe\.weight of shape \(9, 7\)"),
        (lambda w: w.update({"transformer.wpe.weight": w["transformer.wpe.weight"].astype(np.float32)}), r"wpe\.weight .*float32, wants float64"),
        (lambda w: w.update({"transformer.wte.weight": np.ones((13, 8), int)}), r"wte\.weight .*int64, wants a floating array"),
        (lambda w: w.update({"transformer.wte.weight": np.ones(13)}), r"wte\.weight of shape \(13,\)"),
        (lambda w: w.pop("transformer.wte.weight"), r"missing wte\.weight"),
        (lambda w: w.update({"lm_head.weight": 2 * w["transformer.wte.weight"]}), r"lm_head\.weight of its own"),
        (lambda w: w.update({"wte.weight": w["transformer.wte.weight"]}), r"with and without transformer\."),
        (lambda w: w.clear(), r"got no arrays, wants those of one model, which start with transformer\.h\.0\."),
        (lambda w: [w.update({f"model.{name}": w.pop(name)}) for name in list(w)], r"names such as model\.transformer\.wte\.weight, .*transformer\.h\.0\."),
    ],
)
def test_weights_of_something_else_are_refused_by_name(spoil, message):
    weights, _ = random_weights()
    spoil(weights)
    with pytest.raises(ValueError, match=message) as caught:
        load_gpt2(weights)
    assert "\n" not in str(caught.value)


def test_a_shard_that_lacks_what_the_index_promises_is_named(sharded):
    safetensors = pytest.importorskip("safetensors.numpy")
    folder, _ = sharded
    path = folder / "model-00002-of-00002.safetensors"
    arrays, _ = read_safetensors(path)
    lost = sorted(arrays)[3]
    arrays.pop(lost)
    safetensors.save_file(arrays, path)
    with pytest.raises(ValueError, match=rf"model-00002-of-00002\.safetensors: lacks {lost}, which model\.safetensors\.index\.json says is in it"):
        load_gpt2(folder)


def test_a_shard_that_is_not_there_is_named(sharded):
    folder, _ = sharded
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-00002\.safetensors: cannot be read"):
        load_gpt2(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "{", '{"weight_map": 3}', '{"weight_map": {"wte.weight": 3}}', '{"weight_map": []}', "\udcff"], ids=repr
)
def test_a_broken_index_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"index\.json: is not the index of a sharded model: it wants a weight_map of names to files"):
        load_gpt2(tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    for place, name in ((tmp_path, "model.safetensors"), (tmp_path / "no.safetensors", "no.safetensors"), (tmp_path / "no.index.json", "no.index.json")):
        with pytest.raises(ValueError, match=f"{name}: cannot be read"):
            load_gpt2(place)


def test_float16_is_read_as_float32():
    weights, params = random_weights()
    half = {name: array.astype(np.float16) for name, array in weights.items()}
    read = load_gpt2(half)
    assert {leaf.dtype for _, leaf in trees.leaves(read)} == {np.dtype(np.float32)}
    trees.map(lambda own, exact: np.testing.assert_array_equal(own, exact.astype(np.float16).astype(np.float32)), read, params)


def test_bfloat16_is_read_as_float32(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    weights, params = random_weights()
    safetensors.save_file({name: torch.tensor(array).to(torch.bfloat16) for name, array in weights.items()}, tmp_path / "model.safetensors")
    read = load_gpt2(tmp_path)
    assert {leaf.dtype for _, leaf in trees.leaves(read)} == {np.dtype(np.float32)}
    exact = trees.map(lambda leaf: torch.tensor(np.ascontiguousarray(leaf)).to(torch.bfloat16).to(torch.float32).numpy(), params)
    trees.map(np.testing.assert_array_equal, read, exact)


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
    params = load_gpt2({name: p.detach().numpy() for name, p in theirs.state_dict().items()})
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(17, size=(3, 10)), rng.integers(17, size=(3, 10))

    expected = theirs(torch.tensor(ids)).logits
    torch.nn.functional.cross_entropy(expected.reshape(-1, 17), torch.tensor(targets).reshape(-1)).backward()
    logits, backward = gpt2(params, ids=ids, num_heads=heads)
    _, loss_backward = cross_entropy(logits, targets=targets)
    grads = gpt2_weights(backward(loss_backward(np.float64(1))))

    np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-10)
    checked = 0
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(grads[name], parameter.grad.numpy(), atol=1e-10, err_msg=name)
        checked += 1
    assert checked == len(grads)


@pytest.mark.parity
def test_a_padded_batch_equals_hugging_face():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=17, n_positions=11, n_embd=8, n_layer=2, n_head=2, attn_implementation="eager")
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    params = load_gpt2({name: p.detach().numpy() for name, p in theirs.state_dict().items()})
    ids, lengths = np.random.default_rng(0).integers(17, size=(2, 6)), np.array([4, 6])
    real = np.arange(6) < lengths[:, None]
    expected = theirs(torch.tensor(ids), attention_mask=torch.tensor(real.astype(int))).logits.detach().numpy()
    logits, _ = gpt2(params, ids=ids, num_heads=2, mask=padding_mask(lengths, 6))
    np.testing.assert_allclose(logits[real], expected[real], rtol=0, atol=1e-10)
