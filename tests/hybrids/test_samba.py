"""Samba: the stack by its definition, the same model as a pattern of mixers, how far it reaches, and decoding with a fixed size."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.prepare import on_both
from minitransformers.attention.soft_cap import soft_capped_attention
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.linear import Linear
from minitransformers.foundation import assert_gradients, check_gradients, trees, trusted
from minitransformers.hybrids.samba import init_samba, samba, samba_step
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.positional.rope import rope

assert_right, checked = trusted(assert_gradients), trusted(check_gradients)  # the shapes are known to fit


def random_call(seed=0, *, num_layers=2, d_model=4, positions=7, batch=(2,), d_state=3, size=0.3):
    rng = np.random.default_rng(seed)
    params = init_samba(rng, d_model, num_layers=num_layers, num_heads=2, d_state=d_state, d_hidden=5, dtype=np.float64)
    return trees.map(lambda leaf: leaf + size * rng.normal(size=leaf.shape), params), rng.normal(size=(*batch, positions, d_model))


def textbook(params, x, num_heads, window):
    """One sequence, one position, one channel at a time."""

    def norm(gain, rows):
        return gain * rows / anp.sqrt(anp.mean(rows**2, axis=-1, keepdims=True) + 1e-6)

    def silu(v):
        return v / (1 + anp.exp(-v))

    def recurrence(p, rows):
        inner, z = anp.split(rows @ p.in_proj.weight, 2, axis=-1)
        width, (d_inner, d_state), low = p.conv.weight.shape[1], p.A_log.shape, p.dt_proj.weight.shape[0]
        h, out = anp.zeros((d_inner, d_state)), []
        for t in range(len(rows)):
            u = p.conv.bias
            for k in range(width):
                if t - k >= 0:
                    u = u + p.conv.weight[:, width - 1 - k] * inner[t - k]
            u = silu(u)
            parts = u @ p.x_proj.weight
            delta = anp.log(1 + anp.exp(parts[:low] @ p.dt_proj.weight + p.dt_proj.bias))
            B, C = parts[low : low + d_state], parts[low + d_state :]
            h = anp.exp(-delta[:, None] * anp.exp(p.A_log)) * h + (delta * u)[:, None] * B
            out.append((h @ C + p.D * u) * silu(z[t]))
        return anp.stack(out) @ p.out_proj.weight

    def attention(p, rows):
        query, key, value = (rows @ part.weight for part in (p.query, p.key, p.value))
        width, heads = query.shape[1] // num_heads, []
        for h in range(num_heads):
            cut, read = slice(h * width, (h + 1) * width), []
            for i in range(len(rows)):
                seen = slice(max(0, i - window + 1), i + 1)
                e = anp.exp(key[seen, cut] @ query[i, cut] / anp.sqrt(width))
                read.append(e @ value[seen, cut] / anp.sum(e))
            heads.append(anp.stack(read))
        return anp.concatenate(heads, axis=-1) @ p.output.weight

    sequences = []
    for rows in x:
        for i, layer in enumerate(params):
            mixer = recurrence if i % 2 == 0 else attention
            rows = rows + mixer(layer.mixer, norm(layer.mixer_norm.gain, rows))
            inner = norm(layer.channel_norm.gain, rows)
            rows = rows + (silu(inner @ layer.channel.gate.weight) * (inner @ layer.channel.up.weight)) @ layer.channel.down.weight
        sequences.append(rows)
    return anp.stack(sequences)


def test_equals_the_definition_in_outputs_and_gradients():
    params, x = random_call(num_layers=3)
    dout = np.random.default_rng(1).normal(size=x.shape)
    out, backward = samba(params, x, num_heads=2, window=3)
    np.testing.assert_allclose(out, textbook(params, x, 2, 3), atol=1e-11)
    leaves = [leaf for _, leaf in trees.leaves((params, x))]
    expected = autograd.grad(lambda values: anp.sum(dout * textbook(*trees.unflatten((params, x), values), 2, 3)))(leaves)
    for (path, own), theirs in zip(trees.leaves(backward(dout)), expected, strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-10 * max(1, np.abs(theirs).max()), err_msg=path)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_gradients_of_larger_numbers_match_differences(num_layers):
    assert_right(samba, *random_call(num_layers=num_layers, positions=3), num_heads=2, window=2)


@pytest.mark.parametrize("position", ["rope", "none"])
def test_is_the_language_model_whose_mixers_alternate(position):
    """The same model written twice: as a stack, and as a pattern of mixers in the model's own blocks."""
    sizes = {"vocabulary_size": 7, "context": 6, "d_model": 4, "num_layers": 3, "num_heads": 2, "norm": "rms_norm", "position": position}
    stack = LanguageModelConfig(**sizes, stack="samba", options={"stack": {"window": 3, "d_state": 3}})
    pattern = LanguageModelConfig(
        **sizes, mixer="mamba,sliding_window_attention", channel="gated_feed_forward", options={"mixer": {"window": 3, "d_state": 3}}
    )
    one, other = (init_language_model(np.random.default_rng(2), config, std=0.5, dtype=np.float64) for config in (stack, pattern))
    other = other._replace(blocks=[type(block)(*layer) for block, layer in zip(other.blocks, one.blocks, strict=True)],
                           embedding=one.embedding, final_norm=one.final_norm)  # fmt: skip
    ids, dlogits = np.array([[1, 2, 3, 1, 5]]), np.random.default_rng(3).normal(size=(1, 5, 7))
    logits, backward = language_model(one, ids=ids, config=stack)
    their_logits, their_backward = language_model(other, ids=ids, config=pattern)
    np.testing.assert_array_equal(logits, their_logits)
    for (path, own), (_, theirs) in zip(trees.leaves(backward(dlogits)), trees.leaves(their_backward(dlogits)), strict=True):
        np.testing.assert_array_equal(own, theirs, err_msg=path)


def test_windows_alone_reach_to_their_edge_and_one_recurrence_reaches_to_the_start():
    params, x = random_call(num_layers=6, positions=16, batch=(), size=0.1)
    attention = [params[1], params[3], params[5]]
    changed = x.copy()
    changed[0] += 1
    window, reach = 4, 3 * (4 - 1)                           # k layers reach k (window - 1) positions back

    def change(layers):
        return np.abs(samba(layers, changed, num_heads=2, window=window)[0] - samba(layers, x, num_heads=2, window=window)[0]).max(-1)

    alone = change(attention)
    assert alone[reach] > 0
    np.testing.assert_array_equal(alone[reach + 1 :], 0)
    assert (change([params[0], *attention])[reach + 1 :] > 0).all()


def test_a_window_as_long_as_the_text_is_full_attention():
    params, x = random_call()
    np.testing.assert_allclose(samba(params, x, num_heads=2, window=7)[0], samba(params, x, num_heads=2, window=100)[0], atol=1e-13)


def test_shared_key_heads_are_copies_of_one():
    rng = np.random.default_rng(4)
    shared = init_samba(rng, 4, num_layers=2, num_heads=2, num_kv_heads=1, d_state=3, dtype=np.float64)
    x, attention = rng.normal(size=(2, 5, 4)), shared[1].mixer
    twice = attention._replace(**{name: Linear(np.tile(getattr(attention, name).weight, 2), None) for name in ("key", "value")})
    copied = [shared[0], shared[1]._replace(mixer=twice)]
    np.testing.assert_allclose(samba(shared, x, num_heads=2, window=3)[0], samba(copied, x, num_heads=2, window=3)[0], atol=1e-13)


def test_no_position_depends_on_a_later_one():
    params, x = random_call()
    changed = x.copy()
    changed[:, 4] += 1
    before, after = (samba(params, a, num_heads=2, window=3)[0] for a in (x, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])


def with_slots(params):
    """The layers with what QK-norm before RoPE and a sink learn, in every attention, and the two as settings."""
    rng = np.random.default_rng(8)
    learned = {"prepare": (QkNorm(*rng.uniform(0.5, 1.5, size=(2, 2))), None), "core": SoftmaxOffByOne(rng.normal(size=2))}
    layers = [layer._replace(mixer=layer.mixer._replace(**learned)) if i % 2 else layer for i, layer in enumerate(params)]
    return layers, {"prepare": partial(chain, parts=(qk_norm, on_both(rope))), "core": softmax_off_by_one_attention}


SLOTS = {
    "nothing": lambda params: (params, {}),
    "rope": lambda params: (params, {"prepare": on_both(rope)}),
    "soft cap": lambda params: (params, {"core": partial(soft_capped_attention, cap=0.5)}),
    "what learns": with_slots,
}


def test_what_the_slots_of_every_attention_learn_has_its_gradient():
    params, x = random_call(positions=3)
    params, slots = with_slots(params)
    assert_right(samba, params, x, num_heads=2, window=2, **slots)
    learned = samba(params, x, num_heads=2, window=2, **slots)[1](np.cos(x))[0][1].mixer
    assert all(np.abs(leaf).max() > 1e-3 for _, leaf in trees.leaves((learned.prepare, learned.core)))


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("pieces", [(1,) * 7, (4, 1, 1, 1), (2, 5)])
def test_decoding_equals_the_whole_pass(pieces, slots):
    params, x = random_call(num_layers=4)
    params, settings = SLOTS[slots](params)
    whole, _ = samba(params, x, num_heads=2, window=3, **settings)
    if slots != "nothing":
        assert np.abs(whole - samba(random_call(num_layers=4)[0], x, num_heads=2, window=3)[0]).max() > 1e-3
    state, parts, start = None, [], 0
    for size in pieces:
        part, state = samba_step(params, x[:, start : start + size], state, num_heads=2, window=3, **settings)
        parts.append(part)
        start += size
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-11)


def test_the_state_does_not_grow():
    params, x = random_call(positions=30)

    def size_after(positions):
        _, (recurrence, cache) = samba_step(params, x[:, :positions], None, num_heads=2, window=3)
        return sum(a.nbytes for a in recurrence) + cache.bytes

    assert size_after(30) == size_after(5)


def that_forgets_the_stream(params, x, **config):
    out, backward = samba(params, x, **config)

    def wrong(dout):
        dparams, dx = backward(dout)
        return dparams, dx - dout                            # what goes past the layers

    return out, wrong


def test_the_check_refuses_a_stream_without_its_own_gradient():
    assert not checked(that_forgets_the_stream, *random_call(positions=3), num_heads=2, window=2).passed


def test_an_input_of_another_width_is_refused_by_name():
    params, _ = random_call()
    with pytest.raises(ValueError, match=r"x: got shape \(2, 3, 5\)"):
        samba(params, np.ones((2, 3, 5)), num_heads=2, window=2)


@pytest.mark.parametrize(
    ("layer", "path", "named"),
    [
        (1, "mixer_norm.gain", r"params\.1\.mixer\.query\.weight: .* as in params\.1\.mixer_norm\.gain"),
        (1, "channel_norm.gain", r"params\.1\.channel_norm\.gain"),
        (2, "mixer.D", r"params\.2\.mixer\.D"),
        (2, "mixer.conv.bias", r"params\.2\.mixer\.conv\.bias"),
    ],
)
def test_a_later_part_that_would_broadcast_is_refused_by_name(layer, path, named):
    params, x = random_call(num_layers=3)
    params[layer] = trees.unflatten(params[layer], [leaf[:1] if at == path else leaf for at, leaf in trees.leaves(params[layer])])
    with pytest.raises(ValueError, match=named):
        samba(params, x, num_heads=2, window=3)


def test_no_layers_and_a_later_layer_of_another_width_are_refused_by_name():
    params, x = random_call()
    with pytest.raises(ValueError, match="params: got no layers"):
        samba([], x, num_heads=2, window=3)
    with pytest.raises(ValueError, match="num_layers: got 0"):
        random_call(num_layers=0)
    narrow, _ = random_call(d_model=2)
    with pytest.raises(ValueError, match=r"params\.1\.mixer_norm\.gain: got shape \(2,\), wants \(4,\)"):
        samba([params[0], narrow[1]], x, num_heads=2, window=3)


@pytest.mark.parametrize(
    ("x", "layers", "named"), [(np.ones((2, 1, 1)), 2, "x: got"), (np.ones((2, 0, 4)), 2, "x: got"), (np.ones((2, 1, 4)), 1, "state: got 1 layers, wants 2")]
)
def test_a_step_refuses_what_would_broadcast(x, layers, named):
    params, before = random_call()
    _, state = samba_step(params, before, None, num_heads=2, window=3)
    with pytest.raises(ValueError, match=named):
        samba_step(params, x, state[:layers], num_heads=2, window=3)
