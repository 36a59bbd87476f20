"""Gemma 2 as itself: equal to its formula and to Hugging Face; caps, local and global layers, caches, sizes; weights in and out."""

import inspect
import re
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
from minitransformers.foundation.safetensors import write_safetensors
from minitransformers.models import gemma2 as module
from minitransformers.models.configuration import Configuration
from minitransformers.models.decoding import generate, without_cache
from minitransformers.models.gemma2 import (
    GEMMA2_2B,
    GEMMA2_9B,
    GEMMA2_27B,
    gemma2,
    gemma2_step,
    gemma2_weights,
    init_gemma2,
    load_gemma2,
)
from minitransformers.norms.rms_norm import RmsNorm, rms_norm
from minitransformers.positional.rope_fast import rope_fast

SIZES = {"vocabulary": 13, "d_model": 6, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_head": 4, "d_hidden": 5}
SETTINGS = {"num_heads": 4, "query_pre_attn_scalar": 7.0, "window": 3, "attention_cap": 1.5, "final_cap": 4.0, "rope": partial(rope_fast, base=30.0)}
TINY = {**SIZES, "d_model": 3, "num_heads": 2, "num_kv_heads": 1, "d_head": 2, "vocabulary": 5, "d_hidden": 3}


def random_model(seed=0, **changes):
    rng = np.random.default_rng(seed)
    params = init_gemma2(rng, **{**SIZES, **changes}, std=0.4, dtype=np.float64)
    return trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params)


IDS = np.random.default_rng(1).integers(13, size=(3, 7))


def textbook(params, ids, *, num_heads, query_pre_attn_scalar, window, attention_cap, final_cap, rope=None, base=30.0, eps=1e-6):
    """Gemma 2 as a formula: one text, one head and one query at a time, softmax by its definition."""

    def norm(p, x):
        return (1 + p.gain) * x / anp.sqrt(anp.mean(x * x, axis=-1, keepdims=True) + eps)

    def capped(x, cap):
        return cap * anp.tanh(x / cap)

    def turned(rows):
        half = rows.shape[1] // 2
        angles = np.outer(np.arange(len(rows)), base ** (-np.arange(half) / half))
        cos, sin, a, b = np.cos(angles), np.sin(angles), rows[:, :half], rows[:, half:]
        return anp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)

    def attention(p, x, reach):
        q, k, v = (x @ part.weight for part in p[:3])
        d = q.shape[1] // num_heads
        group, heads = num_heads * d // k.shape[1], []
        for h in range(num_heads):
            own, shared = slice(h * d, (h + 1) * d), slice(h // group * d, (h // group + 1) * d)
            query, key, value, rows = turned(q[:, own]), turned(k[:, shared]), v[:, shared], []
            for i in range(len(x)):
                first = max(0, i - reach + 1)
                e = anp.exp(capped(key[first : i + 1] @ query[i] / anp.sqrt(query_pre_attn_scalar), attention_cap))
                rows.append(e @ value[first : i + 1] / anp.sum(e))
            heads.append(anp.stack(rows))
        return anp.concatenate(heads, axis=1) @ p.output.weight

    def geglu(p, x):
        gate = x @ p.gate.weight
        gate = gate / 2 * (1 + anp.tanh(anp.sqrt(2 / anp.pi) * (gate + 0.044715 * gate**3)))
        return (gate * (x @ p.up.weight)) @ p.down.weight

    out = []
    for text in ids:
        x = params.embedding.weight[text] * anp.sqrt(params.embedding.weight.shape[1])
        for layer, b in enumerate(params.blocks):
            reach = len(text) if layer % 2 else window
            x = x + norm(b.after_attention, attention(b.attention, norm(b.before_attention, x), reach))
            x = x + norm(b.after_feed_forward, geglu(b.feed_forward, norm(b.before_feed_forward, x)))
        out.append(capped(norm(params.norm, x) @ (params.embedding.weight.T if params.head is None else params.head.weight), final_cap))
    return anp.stack(out)


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_equals_the_formula_in_outputs_and_gradients(tied):
    params, dlogits = random_model(tied=tied, num_layers=3), np.random.default_rng(2).normal(size=(2, 6, 13))
    logits, backward = gemma2(params, ids=IDS[:2, :6], **SETTINGS)
    np.testing.assert_allclose(logits, textbook(params, IDS[:2, :6], **SETTINGS), rtol=0, atol=1e-10)
    values = [leaf for _, leaf in trees.leaves(params)]
    expected = autograd.grad(lambda own: anp.sum(dlogits * textbook(trees.unflatten(params, own), IDS[:2, :6], **SETTINGS)))(values)
    for (path, own), theirs in zip(trees.leaves(backward(dlogits)), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def test_eps_is_that_of_every_norm():
    params = random_model()
    logits, _ = gemma2(params, ids=IDS, eps=0.5, **SETTINGS)
    np.testing.assert_allclose(logits, textbook(params, IDS, eps=0.5, **SETTINGS), rtol=0, atol=1e-10)
    np.testing.assert_allclose(gemma2_step(params, IDS, None, eps=0.5, **SETTINGS)[0], logits, rtol=0, atol=1e-12)


def test_the_published_settings_are_the_defaults():
    params, published = random_model(num_heads=8, num_kv_heads=4), GEMMA2_2B.settings
    logits, _ = gemma2(params, ids=IDS, num_heads=8, query_pre_attn_scalar=256.0)
    np.testing.assert_array_equal(gemma2(params, ids=IDS, **published)[0], logits)
    np.testing.assert_allclose(logits, textbook(params, IDS, base=1e4, **published), rtol=0, atol=1e-10)
    np.testing.assert_allclose(gemma2_step(params, IDS, None, num_heads=8, query_pre_attn_scalar=256.0)[0], logits, rtol=0, atol=1e-12)


def test_gradients_of_a_head_of_its_own_are_right():
    params = random_model(3, **{**TINY, "num_layers": 1}, tied=False)
    report = check_gradients(gemma2, params, ids=np.array([[1, 4, 1], [0, 2, 2]]), **{**SETTINGS, "num_heads": 2}, second_opinion=False)
    assert report.passed, str(report)


@pytest.mark.parametrize("forgotten", ["the table that is read", "the head", "the root at the table"])
def test_a_tied_table_that_forgets_a_part_of_its_gradient_is_refused(forgotten):
    params, settings = random_model(4, **{**TINY, "num_layers": 1}), {**SETTINGS, "num_heads": 2}
    apart = params._replace(head=Linear(params.embedding.weight.T.copy(), None))

    def forgetful(params, *, ids):
        logits, _ = gemma2(params, ids=ids, **settings)
        _, separate = gemma2(apart, ids=ids, **settings)

        def wrong(dlogits):
            parts = separate(dlogits)
            read, head = parts.embedding.weight, parts.head.weight.T
            part = {"the table that is read": head, "the head": read, "the root at the table": head + read / 3**0.5}[forgotten]
            return parts._replace(embedding=Embedding(part), head=None)

        return logits, wrong

    report = check_gradients(forgetful, params, ids=np.array([[1, 4, 1]]), second_opinion=False)
    assert not report.passed
    assert report.worst.path == "params.embedding.weight"


def test_gradients_under_a_mask_are_right():
    params = random_model(5, **TINY)
    mask = np.random.default_rng(6).random((2, 2, 4, 4)) < 0.7
    ids = np.array([[1, 4, 1, 3], [0, 2, 2, 1]])
    report = check_gradients(gemma2, params, ids=ids, mask=mask, **{**SETTINGS, "num_heads": 2, "window": 2}, second_opinion=False)
    assert report.passed, str(report)


def test_final_logits_stay_within_their_cap():
    params = random_model(7)
    params = params._replace(embedding=Embedding(5 * params.embedding.weight))
    logits, _ = gemma2(params, ids=IDS, **SETTINGS)
    free, _ = gemma2(params, ids=IDS, **{**SETTINGS, "final_cap": 1e9})
    assert np.abs(logits).max() < 4 < 10 < np.abs(free).max()
    np.testing.assert_allclose(logits, 4 * np.tanh(free / 4), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.argsort(logits[0, 0]), np.argsort(free[0, 0]))  # and none overtakes another


def test_caps_on_attention_bound_how_much_more_one_key_weighs_than_another():
    """With a cap of c no weight is above e^(2c) times another, so a cap of nearly nothing is the mean of all values."""
    params = random_model(8, num_layers=2)
    scaled = [b._replace(attention=b.attention._replace(query=Linear(1e3 * b.attention.query.weight, None))) for b in params.blocks]
    sharp = params._replace(blocks=scaled)
    no_queries = [b._replace(attention=b.attention._replace(query=Linear(0 * b.attention.query.weight, None))) for b in params.blocks]
    even = gemma2(params._replace(blocks=no_queries), ids=IDS, **SETTINGS)[0]
    np.testing.assert_allclose(gemma2(sharp, ids=IDS, **{**SETTINGS, "attention_cap": 1e-9})[0], even, rtol=0, atol=1e-7)
    assert np.abs(gemma2(sharp, ids=IDS, **SETTINGS)[0] - even).max() > 1e-2


@pytest.mark.parametrize("layers", [1, 2])
def test_a_local_layer_is_blind_beyond_its_window_and_a_global_one_is_not(layers):
    params, positions = random_model(9, num_layers=layers), 7
    ids = np.random.default_rng(10).integers(13, size=(1, positions))
    reached = []
    for t in range(positions):
        other = ids.copy()
        other[0, t] = (other[0, t] + 1) % 13
        last = (gemma2(params, ids=a, **SETTINGS)[0][0, -1] for a in (ids, other))
        reached.append(not np.array_equal(*last))
    assert reached == [layers == 2 or t > positions - 1 - 3 for t in range(positions)]


def test_gains_of_zero_are_plain_norms():
    params = init_gemma2(np.random.default_rng(11), **SIZES, std=0.4, dtype=np.float64)
    gains = {path: leaf for path, leaf in trees.leaves(params) if path.endswith("gain")}
    assert len(gains) == 4 * 2 + 1 and not any(leaf.any() for leaf in gains.values())
    normed, _ = rms_norm(params.norm, np.random.default_rng(12).normal(size=(5, 6)), offset=1.0)
    np.testing.assert_allclose(np.mean(normed**2, axis=-1), 1, rtol=1e-4)


def test_what_a_sub_layer_adds_has_the_size_of_its_second_gain():
    """Whatever attention makes of it: the norm behind it sets the size, and gains of -1 switch it off."""
    params = random_model(13, num_layers=1)
    block = params.blocks[0]

    def logits(block):
        return gemma2(params._replace(blocks=[block]), ids=IDS, **SETTINGS)[0]

    louder = block._replace(attention=block.attention._replace(output=Linear(50 * block.attention.output.weight, None)))
    np.testing.assert_allclose(logits(louder), logits(block), rtol=0, atol=1e-4)
    off = RmsNorm(np.full(6, -1.0))
    silent = logits(block._replace(after_attention=off, after_feed_forward=off))
    np.testing.assert_allclose(silent, gemma2(params._replace(blocks=[]), ids=IDS, **SETTINGS)[0], rtol=0, atol=1e-12)


def test_only_distances_count():
    params = random_model(14)

    def moved(x, *, positions=None):
        return SETTINGS["rope"](x, positions=np.arange(x.shape[-2]) + 4)

    logits = (gemma2(params, ids=IDS, **{**SETTINGS, "rope": rope})[0] for rope in (SETTINGS["rope"], moved))
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-12)


def test_it_starts_undecided():
    sizes = {"vocabulary": 11, "d_model": 64, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "d_head": 8, "d_hidden": 32}
    params = init_gemma2(np.random.default_rng(15), **sizes)
    assert abs(params.blocks[1].attention.output.weight.std() / 0.02 - 1) < 0.1
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}
    ids, targets = np.random.default_rng(16).integers(11, size=(2, 4, 64))
    loss, _ = cross_entropy(gemma2(params, ids=ids, num_heads=4, query_pre_attn_scalar=8.0)[0], targets=targets)
    assert abs(float(loss) - np.log(11)) < 0.05


def count(vocabulary, d_model, num_layers, num_heads, num_kv_heads, d_head, d_hidden, tied=True):
    block = 4 * d_model + 2 * d_model * num_heads * d_head + 2 * d_model * num_kv_heads * d_head + 3 * d_model * d_hidden
    return vocabulary * d_model * (1 if tied else 2) + num_layers * block + d_model


PUBLISHED = {"GEMMA2_2B": (GEMMA2_2B, 2_614_341_888), "GEMMA2_9B": (GEMMA2_9B, 9_241_705_984), "GEMMA2_27B": (GEMMA2_27B, 27_227_128_320)}
# Table 2 of the report: parameters that are not in the embedding.
REPORT = {"GEMMA2_2B": 2_024_517_888, "GEMMA2_9B": 8_324_201_984, "GEMMA2_27B": 26_047_480_320}


@pytest.mark.parametrize("tied", [False, True])
def test_the_formula_of_the_count_is_that_of_the_parameters(tied):
    assert trees.count_parameters(random_model(tied=tied)) == count(**SIZES, tied=tied)


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_configurations_have_the_published_number_of_parameters(name):
    sizes, _ = PUBLISHED[name][0]
    assert count(**sizes) == PUBLISHED[name][1]
    assert count(**sizes) - sizes["vocabulary"] * sizes["d_model"] == REPORT[name]


def test_every_named_configuration_is_held_to_its_count_and_explained():
    named = {name: found for name, found in vars(module).items() if isinstance(found, Configuration)}
    assert named == {name: configuration for name, (configuration, _) in PUBLISHED.items()}
    text = inspect.getdoc(inspect.unwrap(gemma2))
    rows = [line.split() for line in text.splitlines() if re.match(r"\s+GEMMA2_\w+\s", line)]
    assert [row[0] for row in rows] == list(named)
    for name, layers, d_model, heads, of_keys, d_head, d_hidden, vocabulary, scalar, parameters in rows:
        sizes, settings = named[name]
        assert sizes == dict(zip(SIZES, map(int, (vocabulary, d_model, layers, heads, of_keys, d_head, d_hidden)), strict=True))
        assert settings == {"num_heads": int(heads), "query_pre_attn_scalar": float(scalar), "window": 4096, "attention_cap": 50.0, "final_cap": 30.0}
        assert int(parameters.replace(",", "")) == PUBLISHED[name][1]


@pytest.mark.parametrize("pieces", [(1,) * 7, (4, 1, 2), (7,)])
@pytest.mark.parametrize("window", [1, 3, 40])
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_step_by_step_is_the_whole_pass(pieces, window, tied):
    params, settings = random_model(17, tied=tied, num_layers=3), {**SETTINGS, "window": window}
    whole, _ = gemma2(params, ids=IDS, **settings)
    state, logits, start = None, [], 0
    for size in pieces:
        part, state = gemma2_step(params, IDS[:, start : start + size], state, **settings)
        logits.append(part)
        start += size
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, rtol=0, atol=1e-10)
    assert state.length == 7


def test_local_layers_keep_a_window_and_global_ones_everything():
    params, ids, state, logits = random_model(18), np.random.default_rng(19).integers(13, size=(2, 11)), None, []
    for t in range(11):
        part, state = gemma2_step(params, ids[:, t : t + 1], state, **SETTINGS)
        logits.append(part)
        local, everything = (cache.keys.shape[-2] for cache in state.blocks)
        assert (local, everything) == (min(t + 1, 3), t + 1)
        assert state.bytes == 2 * 2 * 2 * 4 * 8 * (local + everything)  # keys and values, texts, heads of keys, d_head, bytes a number
        assert state.blocks[0].room.capacity <= 16
    np.testing.assert_allclose(np.concatenate(logits, axis=1), gemma2(params, ids=ids, **SETTINGS)[0], rtol=0, atol=1e-10)


def test_it_writes_the_same_text_with_and_without_a_cache():
    params, settings = random_model(20), {"prompt_ids": np.array([1, 2, 3]), "num_tokens": 25, "vocabulary_size": 13}
    cached = list(generate(partial(gemma2_step, params, **SETTINGS), rng=np.random.default_rng(0), **settings))
    plain = list(generate(without_cache(partial(gemma2, params, **SETTINGS)), rng=np.random.default_rng(0), **settings))
    assert cached == plain and len(cached) == 25


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_keys_change_nothing(side):
    params, text, left = random_model(21), IDS[:, :4], side == "left"
    alone, alone_backward = gemma2(params, ids=text, **SETTINGS)
    noise, mask = IDS[:, 4:6], padding_mask(np.array([4, 4, 4]), 6)
    ids, real = np.concatenate([noise, text] if left else [text, noise], axis=1), slice(2, 6) if left else slice(0, 4)
    logits, backward = gemma2(params, ids=ids, mask=mask[..., ::-1] if left else mask, **SETTINGS)
    np.testing.assert_allclose(logits[:, real], alone, rtol=0, atol=1e-12)
    dlogits, dpadded = np.random.default_rng(22).normal(size=alone.shape), np.zeros_like(logits)
    dpadded[:, real] = dlogits
    trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-11), backward(dpadded), alone_backward(dlogits))


def test_a_batch_padded_left_decodes_as_it_is_read_at_once():
    params, ids = random_model(23), IDS[:, :6]
    mask = padding_mask(np.array([4, 6, 1]), 6)[..., ::-1]   # padded left by 2, 0 and 5
    every, state, logits = np.broadcast_to(mask, (3, 1, 6, 6)), None, []
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        part, state = gemma2_step(params, ids[:, start:stop], state, mask=every[..., start:stop, :stop], **SETTINGS)
        logits.append(part)
    whole, _ = gemma2(params, ids=ids, mask=mask, **SETTINGS)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, rtol=0, atol=1e-10)


def test_a_row_of_nothing_but_padding_stays_finite():
    params, mask = random_model(24), padding_mask(np.array([7, 0, 3]), 7)
    logits, backward = gemma2(params, ids=IDS, mask=mask, **SETTINGS)
    assert np.isfinite(logits).all()
    assert all(np.isfinite(leaf).all() for _, leaf in trees.leaves(backward(np.ones_like(logits))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads: got 0"),
        ({"num_heads": 3}, "num_heads: got 3"),
        ({"ids": np.array([[0, 13]])}, "ids: got ids from 0 to 13"),
        ({"ids": np.zeros((1, 0), int)}, "ids"),
        ({"window": 0}, "window: got 0"),
        ({"attention_cap": 0.0}, "attention_cap: got 0.0"),
        ({"final_cap": -1.0}, "final_cap: got -1.0"),
        ({"query_pre_attn_scalar": 0.0}, "query_pre_attn_scalar: got 0.0"),
        ({"eps": -1.0}, "eps: got -1.0"),
        ({"rope": partial(rope_fast, base=-1.0)}, r"rope\.base: got -1\.0"),
        ({"mask": np.ones((3, 1, 1, 6), bool)}, "mask"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # str of a function has its place in memory
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        gemma2(random_model(), **{"ids": IDS, **SETTINGS, **changes})


def test_heads_that_do_not_divide_are_refused_at_the_start():
    with pytest.raises(ValueError, match="num_kv_heads: got 3"):
        init_gemma2(np.random.default_rng(0), **{**SIZES, "num_kv_heads": 3})


def test_a_state_of_another_text_is_refused():
    params = random_model(25)
    _, state = gemma2_step(params, IDS, None, **SETTINGS)
    for other, changes, message in (
        (random_model(num_layers=3), {}, "state: got that of a model of 2 blocks, wants that of this model, of 3"),
        (random_model(num_kv_heads=4), {}, "key: got float64 of shape"),
        (params, {"window": 4}, "window: got 4, wants 3"),
    ):
        with pytest.raises(ValueError, match=message):
            gemma2_step(other, IDS[:, :1], state, **{**SETTINGS, **changes})
    with pytest.raises(ValueError, match="state: got list, wants Gemma2State"):
        gemma2_step(params, IDS[:, :1], [], **SETTINGS)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_survive_the_way_out_and_in(tied, tmp_path):
    params = random_model(26, tied=tied)
    weights = gemma2_weights(params)
    assert weights["model.layers.1.self_attn.q_proj.weight"].shape == (16, 6)
    assert ("lm_head.weight" in weights) is not tied
    write_safetensors(tmp_path / "model.safetensors", weights)
    for source in (weights, tmp_path):
        read = load_gemma2(source)
        trees.map(np.testing.assert_array_equal, read, params)
        assert all(leaf.flags.c_contiguous for _, leaf in trees.leaves(read))


def test_a_repeated_head_is_tied():
    params = random_model(27)
    weights = gemma2_weights(params)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    trees.map(np.testing.assert_array_equal, load_gemma2(weights), params)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"missing model\.norm\.weight"),
        (lambda w: w.pop("model.layers.1.pre_feedforward_layernorm.weight"), r"missing model\.layers\.1\.pre_feedforward_layernorm\.weight"),
        (lambda w: w.update({"model.layers.0.self_attn.q_norm.weight": np.ones(4)}), r"unexpected model\.layers\.0\.self_attn\.q_norm\.weight"),
        (lambda w: w.update({"model.layers.0.post_feedforward_layernorm.weight": np.ones(7)}), r"post_feedforward_layernorm\.weight of shape \(7,\)"),
        (lambda w: w.update({"lm_head.weight": np.ones((12, 6))}), r"lm_head\.weight of shape \(12, 6\), wants .*13"),
        (lambda w: w.clear(), r"got no arrays, wants those of one model, which start with model\.layers\.0\."),
    ],
)
def test_weights_of_something_else_are_refused_by_name(spoil, message):
    weights = gemma2_weights(random_model(28))
    spoil(weights)
    with pytest.raises(ValueError, match=message) as caught:
        load_gemma2(weights)
    assert "\n" not in str(caught.value)


# --- Hugging Face's own -----------------------------------------------------------------------------------------------------


@pytest.fixture
def exact(monkeypatch):
    """PyTorch and transformers, whose norms, tables and softmax are held in float64: as they are, they round to float32."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from transformers.models.gemma2 import modeling_gemma2

    softmax = torch.nn.functional.softmax

    def norm(self, x):
        return (1 + self.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def tables(self, x, position_ids):
        half = self.config.head_dim // 2
        frequency = self.config.rope_parameters["rope_theta"] ** -(torch.arange(half, dtype=torch.float64) / half)
        angles = position_ids[..., None].double() * frequency
        both = torch.cat([angles, angles], dim=-1)
        return both.cos(), both.sin()

    def scaled(self, ids):
        return torch.nn.functional.embedding(ids, self.weight) * self.embedding_dim**0.5

    monkeypatch.setattr(modeling_gemma2.Gemma2RMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_gemma2.Gemma2RotaryEmbedding, "forward", tables)
    monkeypatch.setattr(modeling_gemma2.Gemma2TextScaledWordEmbedding, "forward", scaled)
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim=None, dtype=None, **_: softmax(x, dim=dim))
    return torch, transformers


THEIRS = {"num_heads": 4, "query_pre_attn_scalar": 11.0, "window": 3, "attention_cap": 2.0, "final_cap": 5.0}


def hugging_face(torch, transformers, *, seed=0, tied=True, **changes):
    """A small random model in float64 with noise on every parameter, and its parameters as ours."""
    torch.manual_seed(seed)
    config = transformers.Gemma2Config(**{
        "vocab_size": 17, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 10, "query_pre_attn_scalar": 11, "sliding_window": 3, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0,
        "tie_word_embeddings": tied, "pad_token_id": None, "attn_implementation": "eager", **changes,
    })  # fmt: skip
    theirs = transformers.Gemma2ForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return theirs, load_gemma2({key: value.detach().numpy() for key, value in theirs.state_dict().items()})


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own head"])
def test_logits_and_every_gradient_equal_hugging_face(exact, tied):
    torch, transformers = exact
    theirs, params = hugging_face(torch, transformers, tied=tied)
    ids, targets = np.random.default_rng(0).integers(17, size=(2, 3, 10))

    expected = theirs(torch.tensor(ids)).logits
    torch.nn.functional.cross_entropy(expected.reshape(-1, 17), torch.tensor(targets).reshape(-1)).backward()
    logits, backward = gemma2(params, ids=ids, **THEIRS)
    grads = gemma2_weights(backward(cross_entropy(logits, targets=targets)[1](np.float64(1))))

    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-10)
    named = dict(theirs.named_parameters())
    assert named.keys() == grads.keys()
    for key, parameter in named.items():
        np.testing.assert_allclose(grads[key], parameter.grad.numpy(), rtol=0, atol=1e-10, err_msg=key)


@pytest.mark.parity
def test_as_it_is_hugging_face_differs_by_its_float32_alone():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs, params = hugging_face(torch, transformers)
    ids = np.random.default_rng(0).integers(17, size=(3, 10))
    np.testing.assert_allclose(gemma2(params, ids=ids, **THEIRS)[0], theirs(torch.tensor(ids)).logits.detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_hugging_face(exact, side):
    torch, transformers = exact
    theirs, params = hugging_face(torch, transformers)
    ids, lengths = np.random.default_rng(0).integers(17, size=(2, 7)), np.array([4, 7])
    real, mask = np.arange(7) < lengths[:, None], padding_mask(lengths, 7)
    real, mask = (real[:, ::-1], mask[..., ::-1]) if side == "left" else (real, mask)
    expected = theirs(torch.tensor(ids), attention_mask=torch.tensor(real.astype(int))).logits.detach().numpy()
    np.testing.assert_allclose(gemma2(params, ids=ids, mask=mask, **THEIRS)[0][real], expected[real], rtol=0, atol=1e-10)


@pytest.mark.parity
def test_decoding_equals_hugging_faces_own(exact):
    """Greedy, token by token, several windows long, each with its own caches."""
    torch, transformers = exact
    theirs, params = hugging_face(torch, transformers)
    prompt = np.array([3, 1, 4, 1, 5])
    expected = theirs.generate(torch.tensor(prompt[None]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)[0, 5:]
    step = partial(gemma2_step, params, **THEIRS)
    assert list(generate(step, prompt_ids=prompt, num_tokens=20, temperature=0.0, rng=np.random.default_rng(0))) == expected.tolist()


@pytest.mark.parity
def test_transformers_reads_what_we_write(exact, tmp_path):
    torch, transformers = exact
    theirs, _ = hugging_face(torch, transformers)
    sizes = {"vocabulary": 17, "d_model": 12, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "d_head": 8, "d_hidden": 10}
    params = init_gemma2(np.random.default_rng(3), **sizes, std=0.4, dtype=np.float64)
    theirs.config.save_pretrained(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", gemma2_weights(params), metadata={"format": "pt"})
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float64)
    ids = np.random.default_rng(0).integers(17, size=(2, 6))
    np.testing.assert_allclose(gemma2(params, ids=ids, **THEIRS)[0], read(torch.tensor(ids)).logits.detach().numpy(), rtol=0, atol=1e-10)


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_hugging_faces_model_of_that_configuration_has_the_same_shapes(name):
    """Built without storage."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes, parameters = PUBLISHED[name][0].sizes, PUBLISHED[name][1]
    config = transformers.Gemma2Config(
        vocab_size=sizes["vocabulary"], hidden_size=sizes["d_model"], num_hidden_layers=sizes["num_layers"], num_attention_heads=sizes["num_heads"],
        num_key_value_heads=sizes["num_kv_heads"], head_dim=sizes["d_head"], intermediate_size=sizes["d_hidden"],
    )  # fmt: skip
    with torch.device("meta"):
        assert transformers.Gemma2ForCausalLM(config).num_parameters() == parameters
