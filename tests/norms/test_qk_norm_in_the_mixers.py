"""QK-norm inside attention: before RoPE and before the cache, by function or by name, as Qwen3 has it."""

import json
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import catalogue, check_gradients, trees
from minitransformers.attention.grouped_query_attention import grouped_query_attention, init_grouped_query_attention, pool_heads
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.attention.sliding_window_attention import sliding_window_attention
from minitransformers.models.generate import generate, language_model_step
from minitransformers.models.language_model import LanguageModelConfig, init_language_model, language_model
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.positional.rope import rope

MIXERS = {
    "multi_head_attention": {},
    "grouped_query_attention": {"num_kv_heads": 2},
    "sliding_window_attention": {"num_kv_heads": 2, "window": 3},
}


def case(name, seed=0, d_model=12):
    """The mixer with four heads, its noisy parameters, x and dout."""
    entry, rng = catalogue.find(name), np.random.default_rng(seed)
    settings = {"num_heads": 4, "normalize": "qk_norm"} | MIXERS[name]
    params = entry.init(rng, d_model, bias=False, dtype=np.float64, **{k: v for k, v in settings.items() if k != "window"})
    params = trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), params)
    return partial(entry.function, **settings), params, rng.normal(size=(2, 5, d_model)), rng.normal(size=(2, 5, d_model))


def textbook(weights, gains, x, num_kv_heads, window, rotate):
    """One head and one query at a time: divide by the root mean square, scale, turn, attend."""
    query, key, value, output = weights
    d = query.shape[1] // 4

    def normed(part, head, gain):
        a = x @ part[:, head * d : (head + 1) * d]
        a = gain * a / anp.sqrt(anp.sum(a * a, axis=-1, keepdims=True) / d + 1e-6)
        if not rotate:
            return a
        angle = np.arange(x.shape[1])[:, None] * 10_000.0 ** (-np.arange(0, d, 2) / d)
        angle = np.concatenate([angle, angle], -1)
        half = anp.concatenate([-a[..., d // 2 :], a[..., : d // 2]], axis=-1)
        return a * np.cos(angle) + half * np.sin(angle)

    heads = []
    for h in range(4):
        g = h // (4 // num_kv_heads)
        q, k, v = normed(query, h, gains[0]), normed(key, g, gains[1]), x @ value[:, g * d : (g + 1) * d]
        rows = []
        for i in range(x.shape[1]):
            seen = slice(max(0, i - window + 1), i + 1)
            terms = anp.exp(anp.sum(q[:, i : i + 1] * k[:, seen], axis=-1) / np.sqrt(d))
            rows.append(anp.sum(terms[..., None] * v[:, seen], axis=1) / anp.sum(terms, axis=-1, keepdims=True))
        heads.append(anp.stack(rows, axis=1))
    return anp.concatenate(heads, axis=-1) @ output


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("rotated", [False, True])
def test_equals_the_textbook_and_its_gradients(name, rotated):
    mixer, params, x, dout = case(name, d_model=16)
    x, dout = np.random.default_rng(1).normal(size=(2, 2, 5, 16))
    kv_heads, window = MIXERS[name].get("num_kv_heads", 4), MIXERS[name].get("window", 5)
    out, backward = mixer(params, x, rotate=rope) if rotated else mixer(params, x)
    weights, gains = tuple(part.weight for part in params[:4]), tuple(params.normalizer)
    np.testing.assert_allclose(out, textbook(weights, gains, x, kv_heads, window, rotated), rtol=0, atol=1e-12)
    loss = lambda *a: anp.sum(dout * textbook(*a, kv_heads, window, rotated))  # noqa: E731
    expected = autograd.grad(loss, (0, 1, 2))(weights, gains, x)
    dparams, dx, *_ = backward(dout)
    own = (tuple(part.weight for part in dparams[:4]), tuple(dparams.normalizer), dx)
    for (path, mine), (_, theirs) in zip(trees.leaves(own), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-11, err_msg=path)


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_pass_the_check_by_function_and_by_name(name):
    mixer, params, x, _ = case(name)
    assert check_gradients(partial(mixer, rotate=lambda a, **_: (2 * a, lambda d: 2 * d)), params, x[:1, :4]).passed
    np.testing.assert_array_equal(mixer(params, x, normalize=qk_norm)[0], mixer(params, x)[0])


@pytest.mark.parametrize("name", MIXERS)
def test_longer_query_and_key_weights_change_nothing(name):
    mixer, params, x, _ = case(name)
    exact = partial(qk_norm, eps=0.0)
    longer = params._replace(query=params.query._replace(weight=9 * params.query.weight), key=params.key._replace(weight=params.key.weight / 7))
    np.testing.assert_allclose(mixer(longer, x, normalize=exact)[0], mixer(params, x, normalize=exact)[0], rtol=0, atol=1e-12)
    bare = partial(mixer, normalize=None)
    assert np.abs(bare(longer._replace(normalizer=None), x)[0] - bare(params._replace(normalizer=None), x)[0]).max() > 1e-2


def test_heads_that_do_not_share_are_multi_head_attention():
    _, params, x, dout = case("multi_head_attention")
    grouped = pool_heads(params, num_heads=4, num_kv_heads=4)
    out, backward = multi_head_attention(params, x, num_heads=4, normalize=qk_norm)
    same, same_backward = grouped_query_attention(grouped, x, num_heads=4, num_kv_heads=4, normalize=qk_norm)
    np.testing.assert_allclose(same, out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(same_backward(dout)[0].normalizer, backward(dout)[0].normalizer, rtol=0, atol=1e-12)


def test_gains_that_are_taken_after_the_rotation_are_refused():
    _, params, x, _ = case("multi_head_attention", d_model=8)
    x = np.random.default_rng(2).normal(size=(1, 4, 8))

    def turned_first(params, query, key):
        (query, query_back), (key, key_back) = rope(query), rope(key)
        out, backward = qk_norm(params, query, key)

        def both(douts):
            dparams, dquery, dkey = backward(douts)
            return dparams, query_back(dquery), key_back(dkey)

        return out, both

    def wrong(params, x):
        out, _ = multi_head_attention(params, x, num_heads=4, normalize=qk_norm, rotate=rope)
        return out, lambda dout: multi_head_attention(params, x, num_heads=4, normalize=turned_first)[1](dout)[:2]

    report = check_gradients(wrong, params, x)
    assert not report.passed and report.error > 1e-2


def model(mixer, **changes):
    options = {"mixer": MIXERS[mixer] | {"normalize": "qk_norm"}, "channel": {"d_hidden": 3}}
    settings = {"vocabulary_size": 11, "context": 8, "d_model": 8, "num_layers": 2, "num_heads": 4, "position": "rope"}
    config = LanguageModelConfig(**{**settings, **changes}, mixer=mixer, options=options)
    rng = np.random.default_rng(3)
    params = init_language_model(rng, config, dtype=np.float64)
    return trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), params), config


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_model_decodes_from_the_cache_as_from_the_whole(mixer):
    params, config = model(mixer)
    ids, state, parts = np.random.default_rng(4).integers(11, size=(2, 8)), None, []
    for start, stop in ((0, 3), (3, 4), (4, 6), (6, 8)):
        part, state = language_model_step(params, ids[:, start:stop], state, config=config)
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), language_model(params, ids=ids, config=config)[0], rtol=0, atol=1e-12)
    call = {"config": config, "prompt_ids": ids[0, :3], "num_tokens": 12}
    cached, plain = (list(generate(params, rng=np.random.default_rng(5), use_cache=use, **call)) for use in (True, False))
    assert cached == plain


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_model_has_right_gradients_and_its_configuration_survives_json(mixer):
    params, config = model(mixer, num_layers=1)
    assert LanguageModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert [path for path, _ in trees.leaves(params) if "normalizer" in path] == [f"blocks.0.mixer.normalizer.{side}_gain" for side in ("query", "key")]
    assert check_gradients(language_model, params, ids=np.array([[1, 4, 1]]), config=config, second_opinion=False).passed


def test_a_fresh_model_starts_with_gains_of_one_for_the_features_of_a_head():
    params = init_language_model(np.random.default_rng(0), model("multi_head_attention")[1])
    for gain in params.blocks[1].mixer.normalizer:
        assert gain.dtype == np.float32
        np.testing.assert_array_equal(gain, [1, 1])


GAINS = QkNorm(np.ones(3), np.ones(3))


@pytest.mark.parametrize(
    ("normalizer", "normalize", "message"),
    [
        (None, qk_norm, "normalize: got a normaliser without params.normalizer"),
        (GAINS, None, "normalize: got params.normalizer without a normaliser"),
        (GAINS, True, "normalize: got True"),
        (GAINS, "qk_norms", "unknown normalizer 'qk_norms'; did you mean 'qk_norm'"),
        (GAINS, "rms_norm", "unknown normalizer 'rms_norm'"),
        (GAINS._replace(key_gain=np.ones(12)), qk_norm, r"params\.normalizer\.key_gain: got shape \(12,\), wants \(3,\)"),
        (GAINS._replace(query_gain=np.ones(1)), qk_norm, r"params\.normalizer\.query_gain: got shape \(1,\)"),
    ],
)
@pytest.mark.parametrize("name", MIXERS)
def test_a_normaliser_that_does_not_fit_is_refused(name, normalizer, normalize, message):
    mixer, params, x, _ = case(name)
    with pytest.raises(ValueError, match=message):
        mixer(params._replace(normalizer=normalizer), x, normalize=normalize)
    with pytest.raises(ValueError, match=message):
        step = partial(catalogue.find(name).step, num_heads=4, **MIXERS[name])
        step(params._replace(normalizer=normalizer), x, None, normalize=normalize)


def test_an_unknown_name_is_refused_with_the_configuration():
    with pytest.raises(ValueError, match="unknown normalizer 'layer_norm'"):
        LanguageModelConfig(vocabulary_size=3, options={"mixer": {"normalize": "layer_norm"}})
    with pytest.raises(ValueError, match="unknown normalizer"):
        init_multi_head_attention(np.random.default_rng(0), 4, num_heads=2, normalize="norm")


@pytest.mark.parity
def test_parity_with_the_attention_of_qwen3():
    """Its norms compute in float32 whatever comes in, so the module agrees to that; with norms that do not, to float64."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    class Float64Norm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))

        def forward(self, x):
            return torch.nn.functional.rms_norm(x, (4,), self.weight, 1e-6)

    config = Qwen3Config(hidden_size=24, num_attention_heads=6, num_key_value_heads=2, head_dim=4, attention_bias=False, attn_implementation="sdpa")
    rng = np.random.default_rng(12)
    params = init_grouped_query_attention(rng, 24, num_heads=6, num_kv_heads=2, normalize="qk_norm", dtype=np.float64)
    params = params._replace(normalizer=QkNorm(rng.normal(size=4), rng.normal(size=4)))
    x, dout = rng.normal(size=(2, 5, 24)), rng.normal(size=(2, 5, 24))
    out, backward = grouped_query_attention(params, x, num_heads=6, num_kv_heads=2, rotate=partial(rope, base=100.0), normalize="qk_norm")
    dparams, dx, _ = backward(dout)
    for in_float64 in (False, True):
        module = Qwen3Attention(config, layer_idx=0).double().eval()
        if in_float64:
            module.q_norm, module.k_norm = Float64Norm(), Float64Norm()
        projections, norms = (module.q_proj, module.k_proj, module.v_proj, module.o_proj), (module.q_norm, module.k_norm)
        with torch.no_grad():
            for part, projection in zip(params[:4], projections, strict=True):
                projection.weight.copy_(torch.tensor(part.weight.T))
            for gain, norm in zip(params.normalizer, norms, strict=True):
                norm.weight.copy_(torch.tensor(gain))
        inputs = torch.tensor(x, requires_grad=True)
        angles = torch.arange(5, dtype=torch.float64)[:, None] * 100.0 ** (-torch.arange(2, dtype=torch.float64) / 2)
        angles = torch.cat([angles, angles], -1)[None]
        hidden = torch.zeros(1, 1, 5, 5, dtype=torch.float64).masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
        theirs = module(inputs, position_embeddings=(angles.cos(), angles.sin()), attention_mask=hidden)[0]
        theirs.backward(torch.tensor(dout))
        close = partial(np.testing.assert_allclose, rtol=0, atol=1e-11 if in_float64 else 1e-5)
        close(out, theirs.detach().numpy())
        close(dx, inputs.grad.numpy())
        for own, projection in zip(dparams[:4], projections, strict=True):
            close(own.weight.T, projection.weight.grad.numpy())
        for own, norm in zip(dparams.normalizer, norms, strict=True):
            close(own, norm.weight.grad.numpy())


def test_the_bound_on_the_scores_holds_inside_the_mixer():
    """With gains of one no score is above sqrt(d_head), so no weight is above e^(2 sqrt(d)) times another."""
    seen = []

    def spy(query, key, value):
        seen.append(np.abs(query @ key.swapaxes(-1, -2)).max() / np.sqrt(query.shape[-1]))
        return scaled_dot_product_attention(query, key, value)[0], lambda dout: None

    _, params, x, _ = case("multi_head_attention")
    params = params._replace(normalizer=GAINS)
    multi_head_attention(params, 1e3 * x, num_heads=4, normalize=qk_norm, attend=spy)
    multi_head_attention(params._replace(normalizer=None), 1e3 * x, num_heads=4, attend=spy)
    assert seen[0] <= 3**0.5 + 1e-9 < 1e3 < seen[1]


def test_a_window_as_wide_as_the_text_changes_nothing():
    mixer, params, x, _ = case("sliding_window_attention")
    whole, _ = grouped_query_attention(params, x, num_heads=4, num_kv_heads=2, normalize=qk_norm)
    np.testing.assert_allclose(sliding_window_attention(params, x, num_heads=4, num_kv_heads=2, window=5, normalize=qk_norm)[0], whole, rtol=0, atol=1e-13)
    assert np.abs(mixer(params, x)[0] - whole).max() > 1e-3
