"""Zamba: one block in many places: its gradient is the sum over untied copies, its parameters are paid once, its caches are not."""

from functools import partial

import numpy as np
import pytest

from minitransformers.attention.prepare import on_both
from minitransformers.basics.chain import chain
from minitransformers.foundation import assert_gradients, check_gradients, trees, trusted
from minitransformers.hybrids.shared_attention import shared_attention
from minitransformers.hybrids.zamba import Zamba, init_zamba, zamba, zamba_step
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.norms.rms_norm import RmsNorm, rms_norm
from minitransformers.positional.rope import rope
from minitransformers.state_space.mamba import mamba

assert_right, checked = trusted(assert_gradients), trusted(check_gradients)  # the shapes are known to fit
TINY = {"d_model": 1, "num_heads": 1, "d_state": 2, "d_hidden": 2}


def random_call(seed=0, *, num_layers=4, every=2, num_shared=1, mixer="mamba", rank=None, attention_rank=None, positions=6, d_model=4, num_heads=2, d_state=3, d_hidden=5):
    rng = np.random.default_rng(seed)
    params = init_zamba(
        rng, d_model, num_layers=num_layers, num_heads=num_heads, every=every, num_shared=num_shared, mixer=mixer, rank=rank,
        attention_rank=attention_rank, d_state=d_state, d_hidden=d_hidden, dtype=np.float64,
    )  # fmt: skip
    return trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params), rng.normal(size=(2, positions, d_model))


def test_equals_its_layers_written_out():
    """Four layers, of which the second and the last call; each line is one step of the published figure."""
    params, x = random_call()
    (block,), (first, second, third, fourth) = params

    def layer(own, stream, attended=0.0):
        return stream + mamba(own.mixer, rms_norm(own.norm, stream + attended)[0])[0]

    stream = layer(first, x)
    stream = layer(second, stream, shared_attention(block, second.call, stream, x, num_heads=2)[0])
    stream = layer(third, stream)
    stream = layer(fourth, stream, shared_attention(block, fourth.call, stream, x, num_heads=2)[0])
    np.testing.assert_allclose(zamba(params, x, num_heads=2)[0], stream, atol=1e-13)


@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
def test_gradients_match_differences(mixer):
    params, x = random_call(num_layers=2, every=1, mixer=mixer, rank=1, positions=2, **TINY)
    assert_right(zamba, params, x, num_heads=1)


def test_the_gradient_of_the_shared_block_is_the_sum_over_untied_copies():
    params, x = random_call(num_layers=3, every=1)
    untied = Zamba(params.shared * 3, params.layers)
    dout = np.random.default_rng(1).normal(size=x.shape)
    (out, backward), (their_out, their_backward) = (zamba(p, x, num_heads=2) for p in (params, untied))
    np.testing.assert_array_equal(out, their_out)
    (dparams, dx), (theirs, their_dx) = backward(dout), their_backward(dout)
    total = trees.map(lambda *copies: sum(copies), *theirs.shared)
    for (path, own), (_, summed) in zip(trees.leaves(dparams.shared[0]), trees.leaves(total), strict=True):
        np.testing.assert_allclose(own, summed, atol=1e-12, err_msg=path)
    np.testing.assert_allclose(dx, their_dx, atol=1e-12)


def test_several_blocks_alternate():
    params, x = random_call(num_layers=2, every=1, num_shared=2)
    dout = np.random.default_rng(2).normal(size=x.shape)

    def touched(without):
        """Which blocks still get a gradient when some layers make no call."""
        layers = [layer._replace(call=None if i in without else layer.call) for i, layer in enumerate(params.layers)]
        dshared = zamba(Zamba(params.shared, layers), x, num_heads=2)[1](dout)[0].shared
        return [max(float(np.abs(leaf).max()) for _, leaf in trees.leaves(block)) > 0 for block in dshared]

    assert touched({}) == [True, True]
    assert touched({1}) == [True, False]


def test_call_number_i_uses_block_i_modulo_their_number():
    params, x = random_call(num_layers=5, every=1, num_shared=3)
    first, second, third = params.shared
    spelled_out = Zamba([first, second, third, first, second], params.layers)
    np.testing.assert_array_equal(zamba(params, x, num_heads=2)[0], zamba(spelled_out, x, num_heads=2)[0])
    last = params.layers[-1]
    alone = Zamba(params.shared, [params.layers[0]._replace(call=None), last])  # calls are counted, not layers: its block is the first
    np.testing.assert_array_equal(zamba(alone, x, num_heads=2)[0], zamba(Zamba([first], alone.layers), x, num_heads=2)[0])


def test_more_calls_cost_their_own_maps_and_no_more_blocks():
    one, many = (random_call(num_layers=6, every=every)[0] for every in (6, 1))
    assert trees.count_parameters(many) - trees.count_parameters(one) == 5 * 4 * 4


def test_a_call_whose_map_is_zero_leaves_plain_mamba():
    params, x = random_call()
    silent = [layer if layer.call is None else layer._replace(call=trees.map(np.zeros_like, layer.call)) for layer in params.layers]
    stream = x
    for layer in params.layers:
        stream = stream + mamba(layer.mixer, rms_norm(layer.norm, stream)[0])[0]
    np.testing.assert_allclose(zamba(Zamba(params.shared, silent), x, num_heads=2)[0], stream, atol=1e-13)


def test_fresh_low_rank_changes_change_nothing():
    settings = {"num_layers": 2, "num_heads": 2, "every": 1, "d_state": 3, "dtype": np.float64}
    params = init_zamba(np.random.default_rng(3), 4, rank=2, attention_rank=1, **settings)
    bare = [layer._replace(call=type(layer.call)(layer.call.output)) for layer in params.layers]
    x = np.random.default_rng(4).normal(size=(2, 5, 4))
    np.testing.assert_array_equal(zamba(params, x, num_heads=2)[0], zamba(Zamba(params.shared, bare), x, num_heads=2)[0])


def test_the_output_of_the_block_reaches_the_stream_through_the_mixer_only():
    params, x = random_call(num_layers=1, every=1)
    (layer,) = params.layers
    zero = layer._replace(mixer=layer.mixer._replace(out_proj=trees.map(np.zeros_like, layer.mixer.out_proj)))
    np.testing.assert_array_equal(zamba(Zamba(params.shared, [zero]), x, num_heads=2)[0], x)


def test_no_position_depends_on_a_later_one():
    params, x = random_call()
    changed = x.copy()
    changed[:, 4] += 1
    before, after = (zamba(params, a, num_heads=2)[0] for a in (x, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])


def with_qk_norm(params, d_head=4):
    """Every block with what QK-norm before RoPE learns, and the two as the setting of the stack."""
    rng = np.random.default_rng(8)
    shared = [block._replace(prepare=(QkNorm(*rng.uniform(0.5, 1.5, size=(2, d_head))), None)) for block in params.shared]
    return params._replace(shared=shared), {"prepare": partial(chain, parts=(qk_norm, on_both(rope)))}


PREPARES = {"nothing": lambda params: (params, {}), "rope": lambda params: (params, {"prepare": on_both(rope)}), "QK-norm and rope": with_qk_norm}


def test_what_is_prepared_is_learned_once_for_all_calls():
    params, x = random_call(num_layers=2, every=1, rank=1, positions=2, **TINY)
    params, settings = with_qk_norm(params, d_head=2)
    assert_right(zamba, params, x, num_heads=1, **settings)
    params, x = random_call(num_layers=3, every=1)
    params, settings = with_qk_norm(params)
    dout = np.random.default_rng(1).normal(size=x.shape)
    own, untied = (zamba(p, x, num_heads=2, **settings)[1](dout)[0].shared for p in (params, Zamba(params.shared * 3, params.layers)))
    for (path, leaf), *copies in zip(trees.leaves(own[0].prepare), *(trees.leaves(block.prepare) for block in untied), strict=True):
        np.testing.assert_allclose(leaf, sum(copy for _, copy in copies), atol=1e-12, err_msg=path)
        assert np.abs(leaf).max() > 1e-3


@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
@pytest.mark.parametrize("prepare", PREPARES)
@pytest.mark.parametrize("pieces", [(1,) * 6, (3, 1, 2)])
def test_decoding_equals_the_whole_pass(mixer, prepare, pieces):
    params, x = random_call(mixer=mixer, rank=1, num_shared=2)
    params, settings = PREPARES[prepare](params)
    whole, _ = zamba(params, x, num_heads=2, **settings)
    state, parts, start = None, [], 0
    for size in pieces:
        part, state = zamba_step(params, x[:, start : start + size], state, num_heads=2, **settings)
        parts.append(part)
        start += size
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-11)


def test_every_call_keeps_a_cache_of_its_own():
    params, x = random_call(num_layers=4, every=2)
    _, states = zamba_step(params, x, None, num_heads=2)
    caches = [cache for _, cache in states]
    assert [cache is not None for cache in caches] == [False, True, False, True]
    assert caches[1].bytes == caches[3].bytes == 2 * x.nbytes * 2  # keys and values, of twice the width


def that_keeps_the_last_call_only(params, x, **config):
    out, backward = zamba(params, x, **config)
    alone = [layer._replace(call=None) if i < len(params.layers) - 1 else layer for i, layer in enumerate(params.layers)]
    _, last_backward = zamba(Zamba(params.shared, alone), x, **config)

    def wrong(dout):
        dparams, dx = backward(dout)
        return dparams._replace(shared=last_backward(dout)[0].shared), dx

    return out, wrong


def test_the_check_refuses_a_shared_gradient_that_is_not_summed():
    assert not checked(that_keeps_the_last_call_only, *random_call(num_layers=2, every=1, positions=2, **TINY), num_heads=1).passed


@pytest.mark.parametrize(
    ("changes", "names"), [({"every": 0}, "every"), ({"every": 5}, "every"), ({"every": 2.5}, "every: got 2.5"), ({"attention_rank": -1}, "attention_rank: got -1"), ({"rank": 0}, "rank: got 0"), ({"num_shared": 3}, "num_shared"), ({"mixer": "mamba3"}, "mixer"), ({"num_heads": 3}, "num_heads")]
)
def test_impossible_stacks_are_refused_by_name(changes, names):
    with pytest.raises(ValueError, match=names):
        init_zamba(np.random.default_rng(0), 4, **{"num_layers": 4, "num_heads": 2, "every": 2, **changes})


def test_a_layer_of_another_width_is_refused_by_name():
    params, _ = random_call()
    with pytest.raises(ValueError, match=r"x: got shape \(2, 3, 5\)"):
        zamba(params, np.ones((2, 3, 5)), num_heads=2)


@pytest.mark.parametrize(
    ("mixer", "path"), [("mamba", "norm.gain"), ("mamba", "mixer.D"), ("mamba", "mixer.conv.bias"), ("mamba2", "mixer.conv.bias"), ("mamba2", "mixer.norm.gain")]
)
def test_a_later_part_that_would_broadcast_is_refused_by_name(mixer, path):
    params, x = random_call(mixer=mixer)
    params.layers[2] = trees.unflatten(params.layers[2], [leaf[:1] if at == path else leaf for at, leaf in trees.leaves(params.layers[2])])
    with pytest.raises(ValueError, match=f"params.layers.2.{path}"):
        zamba(params, x, num_heads=2)


def test_a_stack_without_layers_or_blocks_is_refused_by_name():
    params, x = random_call()
    with pytest.raises(ValueError, match="params: got no layers"):
        zamba(params._replace(layers=[]), x, num_heads=2)
    with pytest.raises(ValueError, match=r"params\.shared: got no block"):
        zamba(params._replace(shared=[]), x, num_heads=2)


@pytest.mark.parametrize(
    ("x", "layers", "named"), [(np.ones((2, 1, 1)), 4, "x: got"), (np.ones((2, 0, 4)), 4, "x: got"), (np.ones((2, 1, 4)), 3, "state: got 3 layers, wants 4")]
)
def test_a_step_refuses_what_would_broadcast(x, layers, named):
    params, before = random_call()
    _, state = zamba_step(params, before, None, num_heads=2)
    with pytest.raises(ValueError, match=named):
        zamba_step(params, x, state[:layers], num_heads=2)


def put(torch, module, weight, name="weight"):
    with torch.no_grad():
        getattr(module, name).copy_(torch.tensor(weight))


@pytest.mark.parity
def test_parity_with_hugging_face_zamba2():
    """The whole model without its embeddings and last norm: Mamba-2 layers, two alternating blocks, adapters, RoPE. Float32 inside."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.zamba2.modeling_zamba2 import Zamba2Model

    rng = np.random.default_rng(5)
    params = init_zamba(
        rng, 8, num_layers=4, num_heads=2, every=1, num_shared=2, mixer="mamba2", rank=2, attention_rank=2, d_state=3, d_hidden=6, dtype=np.float64
    )
    params = trees.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape), params)
    heads = len(params.layers[0].mixer.A_log)
    config = transformers.Zamba2Config(
        vocab_size=5, hidden_size=8, num_hidden_layers=4, layers_block_type=["hybrid"] * 4, num_mem_blocks=2, mamba_d_state=3, mamba_d_conv=4,
        mamba_expand=2, mamba_ngroups=1, n_mamba_heads=heads, mamba_headdim=16 // heads, num_attention_heads=2, num_key_value_heads=2,
        attention_head_dim=8, attention_hidden_size=16, intermediate_size=6, hidden_act="gelu", adapter_rank=2, use_shared_attention_adapter=True,
        use_mem_rope=True, rope_theta=10000, rms_norm_eps=1e-6, chunk_size=4, use_conv_bias=True, add_bias_linear=False, attn_implementation="eager",
        use_mamba_kernels=False, max_position_embeddings=16,
    )  # fmt: skip
    model = Zamba2Model(config).double().eval()
    for i, (layer, theirs) in enumerate(zip(params.layers, model.layers, strict=True)):
        block, call, mixer = params.shared[i % 2], layer.call, layer.mixer
        shared, own = theirs.shared_transformer, theirs.mamba_decoder
        attention, channel = shared.self_attn, shared.feed_forward
        put(torch, shared.input_layernorm, block.attention_norm.gain)
        put(torch, shared.pre_ff_layernorm, block.channel_norm.gain)
        for module, weight in ((attention.q_proj, block.query), (attention.k_proj, block.key), (attention.v_proj, block.value),
                               (attention.o_proj, block.mixed), (channel.down_proj, block.down), (theirs.linear, call.output),
                               (own.mamba.in_proj, mixer.in_proj), (own.mamba.out_proj, mixer.out_proj)):  # fmt: skip
            put(torch, module, weight.weight.T)
        put(torch, channel.gate_up_proj, np.concatenate([block.gate.weight, block.up.weight], axis=1).T)
        adapters = (attention.linear_q_adapter_list, attention.linear_k_adapter_list, attention.linear_v_adapter_list, channel.gate_up_proj_adapter_list)
        for adapter, change in zip(adapters, call[1:], strict=True):
            put(torch, adapter[i][0], change.down.T)
            put(torch, adapter[i][1], change.up.T)
        put(torch, own.input_layernorm, layer.norm.gain)
        put(torch, own.mamba.conv1d, mixer.conv.weight[:, None, :])
        put(torch, own.mamba.conv1d, mixer.conv.bias, "bias")
        put(torch, own.mamba.norm, mixer.norm.gain)
        for name in ("A_log", "D", "dt_bias"):
            put(torch, own.mamba, getattr(mixer, name), name)
    put(torch, model.final_layernorm, np.ones(8))
    x, dout = rng.normal(size=(2, 5, 8)), rng.normal(size=(2, 5, 8))
    their_x = torch.tensor(x, requires_grad=True)
    their_out = model(inputs_embeds=their_x, use_cache=False).last_hidden_state
    their_out.backward(torch.tensor(dout))

    out, backward = zamba(params, x, num_heads=2, prepare=on_both(rope))
    final, final_backward = rms_norm(RmsNorm(np.ones(8)), out)
    dparams, dx = backward(final_backward(dout)[1])
    first, second = (model.layers[i].shared_transformer.self_attn.q_proj.weight.grad.numpy() for i in (0, 1))
    pairs = (final, their_out.detach().numpy()), (dx, their_x.grad.numpy()), (dparams.shared[0].query.weight.T, first), (dparams.shared[1].query.weight.T, second)
    for own, theirs in pairs:
        np.testing.assert_allclose(own, theirs, atol=1e-5 * np.abs(theirs).max())
