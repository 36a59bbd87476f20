"""QK-norm inside attention: before RoPE and before the cache, as Qwen3 has it."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import causal_attention
from minitransformers.attention.grouped_query_attention import (
    grouped_query_attention,
    grouped_query_attention_step,
    init_grouped_query_attention,
    pool_heads,
)
from minitransformers.attention.multi_head_attention import (
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.attention.prepare import on_both
from minitransformers.attention.sliding_window_attention import (
    init_sliding_window_attention,
    sliding_window_attention,
    sliding_window_attention_step,
)
from minitransformers.basics.chain import chain
from minitransformers.foundation import check_gradients, trees, trusted
from minitransformers.norms.qk_norm import QkNorm, init_qk_norm, qk_norm
from minitransformers.positional.rope import rope

MIXERS = {
    "multi_head_attention": (multi_head_attention, multi_head_attention_step, init_multi_head_attention, {}),
    "grouped_query_attention": (grouped_query_attention, grouped_query_attention_step, init_grouped_query_attention, {"num_kv_heads": 2}),
    "sliding_window_attention": (sliding_window_attention, sliding_window_attention_step, init_sliding_window_attention, {"window": 3}),
}
TURNED = partial(chain, parts=(qk_norm, on_both(rope)))


def case(name, seed=0, d_model=12):
    """The mixer with four heads and QK-norm, its noisy parameters, x and dout."""
    (function, _, init, config), rng = MIXERS[name], np.random.default_rng(seed)
    heads = {"num_heads": 4} if name == "multi_head_attention" else {"num_heads": 4, "num_kv_heads": 2}
    params = init(rng, d_model, bias=False, dtype=np.float64, **heads)
    params = params._replace(prepare=init_qk_norm(rng, d_model // 4, dtype=np.float64))
    params = trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), params)
    call = partial(function, num_heads=4, prepare=qk_norm, **config)
    return call, params, rng.normal(size=(2, 5, d_model)), rng.normal(size=(2, 5, d_model))


def and_turned(params):
    """The parameters for the same with a rotation after the norm."""
    return params._replace(prepare=(params.prepare, None))


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
    kv_heads, window = 4 if name == "multi_head_attention" else 2, MIXERS[name][3].get("window", 5)
    out, backward = mixer(and_turned(params), x, prepare=TURNED) if rotated else mixer(params, x)
    weights, gains = tuple(part.weight for part in params[:4]), tuple(params.prepare)
    np.testing.assert_allclose(out, textbook(weights, gains, x, kv_heads, window, rotated), rtol=0, atol=1e-12)
    loss = lambda *a: anp.sum(dout * textbook(*a, kv_heads, window, rotated))  # noqa: E731
    expected = autograd.grad(loss, (0, 1, 2))(weights, gains, x)
    dparams, dx, *_ = backward(dout)
    own = (tuple(part.weight for part in dparams[:4]), tuple(dparams.prepare[0] if rotated else dparams.prepare), dx)
    for (path, mine), (_, theirs) in zip(trees.leaves(own), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-11, err_msg=path)


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_pass_the_check_alone_and_before_a_turn(name):
    mixer, params, x, _ = case(name, d_model=8)
    doubled = partial(chain, parts=(qk_norm, on_both(lambda a, positions: (2 * a, lambda d: 2 * d))))
    assert trusted(check_gradients)(mixer, params, x[:1, :3], second_opinion=False).passed
    assert trusted(check_gradients)(mixer, and_turned(params), x[:1, :3], prepare=doubled, second_opinion=False).passed


@pytest.mark.parametrize("name", MIXERS)
def test_longer_query_and_key_weights_change_nothing(name):
    mixer, params, x, _ = case(name)
    exact = partial(qk_norm, eps=0.0)
    longer = params._replace(query=params.query._replace(weight=9 * params.query.weight), key=params.key._replace(weight=params.key.weight / 7))
    np.testing.assert_allclose(mixer(longer, x, prepare=exact)[0], mixer(params, x, prepare=exact)[0], rtol=0, atol=1e-12)
    bare = partial(MIXERS[name][0], num_heads=4, **MIXERS[name][3])
    assert np.abs(bare(longer._replace(prepare=None), x)[0] - bare(params._replace(prepare=None), x)[0]).max() > 1e-2


def test_heads_that_do_not_share_are_multi_head_attention():
    _, params, x, dout = case("multi_head_attention")
    grouped = pool_heads(params, num_heads=4, num_kv_heads=4)
    out, backward = multi_head_attention(params, x, num_heads=4, prepare=qk_norm)
    same, same_backward = grouped_query_attention(grouped, x, num_heads=4, num_kv_heads=4, prepare=qk_norm)
    np.testing.assert_allclose(same, out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(same_backward(dout)[0].prepare, backward(dout)[0].prepare, rtol=0, atol=1e-12)


def test_gains_that_are_taken_after_the_rotation_are_refused():
    _, params, x, _ = case("multi_head_attention", d_model=8)
    x = np.random.default_rng(2).normal(size=(1, 4, 8))

    def wrong(params, x):
        out, _ = multi_head_attention(and_turned(params), x, num_heads=4, prepare=TURNED)
        turned_first = partial(chain, parts=(on_both(rope), qk_norm))

        def backward(dout):
            swapped = params._replace(prepare=(None, params.prepare))
            dparams, dx, _ = multi_head_attention(swapped, x, num_heads=4, prepare=turned_first)[1](dout)
            return dparams._replace(prepare=dparams.prepare[1]), dx

        return out, backward

    report = check_gradients(wrong, params, x)
    assert not report.passed and report.error > 1e-2


def two_layers(run, layers, x):
    """Two attentions on a residual stream."""
    for layer in layers:
        x = x + run(layer, x)
    return x


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("turned", [False, True])
def test_two_layers_decode_from_their_caches_as_from_the_whole(turned, name):
    mixer, params, x, _ = case(name, d_model=16)
    layers, x = [params, case(name, seed=1, d_model=16)[1]], np.random.default_rng(4).normal(size=(2, 8, 16))
    config = {"num_heads": 4, "prepare": TURNED if turned else qk_norm, **MIXERS[name][3]}
    layers = [and_turned(layer) if turned else layer for layer in layers]
    whole = two_layers(lambda layer, x: mixer(layer, x, prepare=config["prepare"])[0], layers, x)
    states, parts = [None, None], []
    for start, stop in ((0, 3), (3, 4), (4, 6), (6, 8)):
        part = x[:, start:stop]
        for i, layer in enumerate(layers):
            out, states[i] = MIXERS[name][1](layer, part, states[i], **config)
            part = part + out
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MIXERS)
def test_fresh_gains_are_ones_for_the_features_of_a_head(name):
    (_, _, init, _), rng = MIXERS[name], np.random.default_rng(0)
    params = init(rng, 8, num_heads=4, **({} if name == "multi_head_attention" else {"num_kv_heads": 2}))
    params = params._replace(prepare=init_qk_norm(rng, 2))
    for gain in params.prepare:
        assert gain.dtype == np.float32
        np.testing.assert_array_equal(gain, [1, 1])
    out, _ = MIXERS[name][0](params, np.ones((3, 8), np.float32), num_heads=4, prepare=qk_norm, **MIXERS[name][3])
    assert out.dtype == np.float32


GAINS = QkNorm(np.ones(3), np.ones(3))


@pytest.mark.parametrize(
    ("learned", "prepare", "message"),
    [
        (None, qk_norm, "params: got NoneType, wants QkNorm"),
        (GAINS, None, "prepare: got None, wants a function"),
        (GAINS, True, "prepare: got True"),
        (GAINS, on_both(rope), "params: got QkNorm, wants None"),
        (GAINS._replace(key_gain=np.ones(12)), qk_norm, r"params\.key_gain: got shape \(12,\), wants \(3,\)"),
        (GAINS._replace(query_gain=np.ones(1)), qk_norm, r"params\.query_gain: got shape \(1,\)"),
        (GAINS._replace(query_gain=np.ones(3, np.float32)), qk_norm, r"params\.prepare\.query_gain: got float32"),
    ],
)
@pytest.mark.parametrize("name", MIXERS)
def test_a_norm_that_does_not_fit_is_refused(name, learned, prepare, message):
    mixer, params, x, _ = case(name)
    with pytest.raises(ValueError, match=message):
        mixer(params._replace(prepare=learned), x, prepare=prepare)


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
    params = init_grouped_query_attention(rng, 24, num_heads=6, num_kv_heads=2, dtype=np.float64)
    params = params._replace(prepare=(QkNorm(rng.normal(size=4), rng.normal(size=4)), None))
    x, dout = rng.normal(size=(2, 5, 24)), rng.normal(size=(2, 5, 24))
    both = partial(chain, parts=(qk_norm, on_both(partial(rope, base=100.0))))
    out, backward = grouped_query_attention(params, x, num_heads=6, num_kv_heads=2, prepare=both)
    dparams, dx, _ = backward(dout)
    for in_float64 in (False, True):
        module = Qwen3Attention(config, layer_idx=0).double().eval()
        if in_float64:
            module.q_norm, module.k_norm = Float64Norm(), Float64Norm()
        projections, norms = (module.q_proj, module.k_proj, module.v_proj, module.o_proj), (module.q_norm, module.k_norm)
        with torch.no_grad():
            for part, projection in zip(params[:4], projections, strict=True):
                projection.weight.copy_(torch.tensor(part.weight.T))
            for gain, norm in zip(params.prepare[0], norms, strict=True):
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
        for own, norm in zip(dparams.prepare[0], norms, strict=True):
            close(own, norm.weight.grad.numpy())


def test_the_bound_on_the_scores_holds_inside_the_mixer():
    """With gains of one no score is above sqrt(d_head), so no weight is above e^(2 sqrt(d)) times another."""
    seen = []

    def spy(params, query, key, value, bias=None, *, mask=None):
        seen.append(np.abs(query @ key.swapaxes(-1, -2)).max() / np.sqrt(query.shape[-1]))
        return causal_attention(params, query, key, value, bias, mask=mask)

    _, params, x, _ = case("multi_head_attention")
    params = params._replace(prepare=GAINS)
    multi_head_attention(params, 1e3 * x, num_heads=4, prepare=qk_norm, core=spy)
    multi_head_attention(params._replace(prepare=None), 1e3 * x, num_heads=4, core=spy)
    assert seen[0] <= 3**0.5 + 1e-9 < 1e3 < seen[1]


def test_a_window_as_wide_as_the_text_changes_nothing():
    mixer, params, x, _ = case("sliding_window_attention")
    whole, _ = grouped_query_attention(params, x, num_heads=4, num_kv_heads=2, prepare=qk_norm)
    np.testing.assert_allclose(sliding_window_attention(params, x, num_heads=4, window=5, prepare=qk_norm)[0], whole, rtol=0, atol=1e-13)
    assert np.abs(mixer(params, x)[0] - whole).max() > 1e-3
