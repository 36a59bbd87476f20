"""Shared attention: the block by its formula, what a call changes and what it leaves, Hugging Face's blocks, and decoding."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from autograd.scipy.special import erf

from minitransformers.attention.prepare import on_both
from minitransformers.basics.chain import chain
from minitransformers.basics.linear import Linear
from minitransformers.foundation import assert_gradients, check_gradients, trees, trusted
from minitransformers.hybrids.shared_attention import (
    LowRank,
    SharedCall,
    init_shared_attention,
    init_shared_call,
    shared_attention,
    shared_attention_step,
)
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.positional.rope import rope

assert_right, checked = trusted(assert_gradients), trusted(check_gradients)  # the shapes are known to fit


def random_call(seed=0, *, d_model=4, num_heads=2, d_hidden=5, rank=2, attention_rank=3, batch=(2,), positions=5):
    rng = np.random.default_rng(seed)
    params = init_shared_attention(rng, d_model, num_heads=num_heads, d_hidden=d_hidden, dtype=np.float64)
    call = init_shared_call(rng, params, rank=rank, attention_rank=attention_rank)
    params, call = (trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), tree) for tree in (params, call))
    return params, call, rng.normal(size=(*batch, positions, d_model)), rng.normal(size=(*batch, positions, d_model))


def textbook(params, call, x, embedded, num_heads):
    """One sequence and one head at a time; the low-rank paths added to the outputs, as the published code does."""

    def norm(gain, rows):
        return gain * rows / anp.sqrt(anp.mean(rows**2, axis=-1, keepdims=True) + 1e-6)

    def through(shared, change, rows):
        return rows @ shared.weight if change is None else rows @ shared.weight + (rows @ change.down) @ change.up

    sequences = []
    for b in range(len(x)):
        normed = norm(params.attention_norm.gain, anp.concatenate([x[b], embedded[b]], axis=-1))
        query, key, value = (through(getattr(params, name), getattr(call, name), normed) for name in ("query", "key", "value"))
        width, heads = query.shape[1] // num_heads, []
        for h in range(num_heads):
            cut, rows = slice(h * width, (h + 1) * width), []
            for i in range(len(normed)):
                e = anp.exp(key[: i + 1, cut] @ query[i, cut] / anp.sqrt(width / 2))
                rows.append(e @ value[: i + 1, cut] / anp.sum(e))
            heads.append(anp.stack(rows))
        inner = norm(params.channel_norm.gain, anp.concatenate(heads, axis=-1) @ params.mixed.weight)
        gate, up = inner @ params.gate.weight, inner @ params.up.weight
        if call.gate_up is not None:
            both = (inner @ call.gate_up.down) @ call.gate_up.up
            gate, up = gate + both[:, : gate.shape[1]], up + both[:, gate.shape[1] :]
        worked = gate * 0.5 * (1 + erf(gate / anp.sqrt(2.0))) * up
        sequences.append(worked @ params.down.weight @ call.output.weight)
    return anp.stack(sequences)


@pytest.mark.parametrize("ranks", [(None, None), (2, None), (2, 3)])
def test_equals_the_formula_in_outputs_and_gradients(ranks):
    args = random_call(rank=ranks[0], attention_rank=ranks[1])
    dout = np.random.default_rng(1).normal(size=(2, 5, 4))
    out, backward = shared_attention(*args, num_heads=2)
    np.testing.assert_allclose(out, textbook(*args, 2), atol=1e-12)
    leaves = [leaf for _, leaf in trees.leaves(args)]
    expected = autograd.grad(lambda values: anp.sum(dout * textbook(*trees.unflatten(args, values), 2)))(leaves)
    for (path, own), theirs in zip(trees.leaves(backward(dout)), expected, strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-10, err_msg=path)


def test_a_change_of_zero_changes_nothing():
    params, call, x, embedded = random_call()
    silent = call._replace(**{name: getattr(call, name)._replace(up=0 * getattr(call, name).up) for name in ("query", "key", "value", "gate_up")})
    np.testing.assert_array_equal(
        shared_attention(params, silent, x, embedded, num_heads=2)[0], shared_attention(params, SharedCall(call.output), x, embedded, num_heads=2)[0]
    )


def test_a_fresh_call_begins_as_the_shared_block():
    rng = np.random.default_rng(2)
    params, _, x, embedded = random_call()
    call = init_shared_call(rng, params, rank=2, attention_rank=3)
    plain = shared_attention(params, SharedCall(call.output), x, embedded, num_heads=2)[0]
    np.testing.assert_array_equal(shared_attention(params, call, x, embedded, num_heads=2)[0], plain)


def test_the_order_of_stream_and_embeddings_matters():
    params, call, x, embedded = random_call()
    there, back = (shared_attention(params, call, *pair, num_heads=2)[0] for pair in ((x, embedded), (embedded, x)))
    assert np.abs(there - back).max() > 0.01


def test_no_position_depends_on_a_later_one():
    params, call, x, embedded = random_call()
    later = embedded.copy()
    later[:, 3:] += 1
    before, after = (shared_attention(params, call, x, e, num_heads=2)[0] for e in (embedded, later))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(before[:, 3:] - after[:, 3:]).max() > 1e-3


def with_qk_norm(params):
    """The block with what QK-norm before RoPE learns, for heads of four features, and the two as its setting."""
    learned = QkNorm(*np.random.default_rng(8).uniform(0.5, 1.5, size=(2, 4))), None
    return params._replace(prepare=learned), {"prepare": partial(chain, parts=(qk_norm, on_both(rope)))}


PREPARES = {"nothing": lambda params: (params, {}), "rope": lambda params: (params, {"prepare": on_both(rope)}), "QK-norm and rope": with_qk_norm}


def test_what_is_prepared_has_its_gradient():
    params, call, x, embedded = random_call(positions=3)
    params, settings = with_qk_norm(params)
    assert_right(shared_attention, params, call, x, embedded, num_heads=2, **settings)
    dparams, *_ = shared_attention(params, call, x, embedded, num_heads=2, **settings)[1](np.cos(x))
    assert all(np.abs(leaf).max() > 1e-3 for _, leaf in trees.leaves(dparams.prepare))


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1, 1), (3, 2)])
@pytest.mark.parametrize("prepare", PREPARES)
def test_decoding_equals_the_whole_pass(pieces, prepare):
    params, call, x, embedded = random_call()
    params, settings = PREPARES[prepare](params)
    whole, _ = shared_attention(params, call, x, embedded, num_heads=2, **settings)
    if settings:
        assert np.abs(whole - shared_attention(params._replace(prepare=None), call, x, embedded, num_heads=2)[0]).max() > 1e-3
    state, parts, start = None, [], 0
    for size in pieces:
        cut = slice(start, start + size)
        part, state = shared_attention_step(params, call, x[:, cut], embedded[:, cut], state, num_heads=2, **settings)
        parts.append(part)
        start += size
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-12)


def without_the_embeddings_part(params, call, x, embedded, **config):
    out, backward = shared_attention(params, call, x, embedded, **config)

    def wrong(dout):
        dparams, dcall, dx, dembedded = backward(dout)
        return dparams, dcall, dx, np.zeros_like(dembedded)

    return out, wrong


def with_the_change_not_transposed(params, call, x, embedded, **config):
    out, backward = shared_attention(params, call, x, embedded, **config)

    def wrong(dout):
        dparams, dcall, dx, dembedded = backward(dout)
        return dparams, dcall._replace(key=LowRank(params.key.weight @ call.key.up.T, dcall.key.up)), dx, dembedded

    return out, wrong


@pytest.mark.parametrize("wrong", [without_the_embeddings_part, with_the_change_not_transposed])
def test_the_check_refuses_a_wrong_backward(wrong):
    assert not checked(wrong, *random_call(positions=3), num_heads=2).passed


def test_a_change_of_the_wrong_width_is_refused_by_name():
    params, call, x, embedded = random_call()
    narrow = call._replace(gate_up=LowRank(np.ones((4, 2)), np.ones((2, 8))))
    with pytest.raises(ValueError, match=r"call\.gate_up\.up"):
        shared_attention(params, narrow, x, embedded, num_heads=2)
    tall = params._replace(attention_norm=params.attention_norm._replace(gain=np.ones(9)), query=Linear(np.ones((9, 8)), None),
                           key=Linear(np.ones((9, 8)), None), value=Linear(np.ones((9, 8)), None))  # fmt: skip
    with pytest.raises(ValueError, match=r"params\.query\.weight"):
        shared_attention(tall, SharedCall(call.output), x, embedded, num_heads=2)


def put(torch, module, weight):
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight.T if weight.ndim == 2 else weight))


def causal(torch, positions):
    return torch.full((positions, positions), -torch.inf, dtype=torch.float64).triu(1)[None, None]


def compare(torch, theirs, pairs, args, num_heads):
    """Outputs, and gradients of the inputs and of every shared weight. Its norms compute in float32: to 1e-5."""
    params, call, x, embedded = args
    dout = np.random.default_rng(7).normal(size=x.shape)
    their_x, their_embedded = (torch.tensor(a, requires_grad=True) for a in (x, embedded))
    their_out = theirs(their_x, their_embedded)
    their_out.backward(torch.tensor(dout))
    out, backward = shared_attention(params, call, x, embedded, num_heads=num_heads)
    dparams, dcall, dx, dembedded = backward(dout)
    np.testing.assert_allclose(out, their_out.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(dembedded, their_embedded.grad.numpy(), atol=1e-5)
    for module, own in pairs(dparams, dcall):
        np.testing.assert_allclose(own.T if own.ndim == 2 else own, module.weight.grad.numpy(), atol=2e-5)


@pytest.mark.parity
def test_parity_with_hugging_face_zamba():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.zamba.modeling_zamba import ZambaAttentionDecoderLayer

    args = random_call(3, d_model=8, num_heads=4, d_hidden=6, rank=None, attention_rank=None)
    config = transformers.ZambaConfig(
        hidden_size=8, num_attention_heads=4, num_key_value_heads=4, intermediate_size=6, attention_hidden_size=16,
        attention_head_dim=4, rms_norm_eps=1e-6, hidden_act="gelu", attn_implementation="eager",
    )  # fmt: skip
    block, last = ZambaAttentionDecoderLayer(config, 0).double(), torch.nn.Linear(8, 8, bias=False).double()

    def pairs(params, call):
        attention, channel = block.self_attn, block.feed_forward
        return [
            (block.input_layernorm, params.attention_norm.gain), (attention.q_proj, params.query.weight), (attention.k_proj, params.key.weight),
            (attention.v_proj, params.value.weight), (attention.o_proj, params.mixed.weight), (block.pre_ff_layernorm, params.channel_norm.gain),
            (channel.gate_proj, params.gate.weight), (channel.up_proj, params.up.weight), (channel.down_proj, params.down.weight),
            (last, call.output.weight),
        ]  # fmt: skip

    for module, weight in pairs(*args[:2]):
        put(torch, module, weight)
    compare(torch, lambda x, e: last(block(x, e, 0, causal(torch, 5)).double()), pairs, args, num_heads=4)


@pytest.mark.parity
def test_parity_with_hugging_face_zamba2_and_its_adapters():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.zamba2.modeling_zamba2 import Zamba2AttentionDecoderLayer

    args = random_call(4, d_model=8, num_heads=4, d_hidden=6, rank=2, attention_rank=2)
    config = transformers.Zamba2Config(
        hidden_size=8, num_attention_heads=4, num_key_value_heads=4, intermediate_size=6, attention_hidden_size=16, attention_head_dim=4,
        rms_norm_eps=1e-6, hidden_act="gelu", attn_implementation="eager", num_hidden_layers=2, layers_block_type=["mamba", "hybrid"],
        hybrid_layer_ids=[1], num_mem_blocks=1, adapter_rank=2, use_shared_attention_adapter=True, use_mem_rope=False,
    )  # fmt: skip
    block, last = Zamba2AttentionDecoderLayer(config, block_id=0).double(), torch.nn.Linear(8, 8, bias=False).double()
    attention, channel = block.self_attn, block.feed_forward

    def pairs(params, call):
        shared = [
            (block.input_layernorm, params.attention_norm.gain), (attention.q_proj, params.query.weight), (attention.k_proj, params.key.weight),
            (attention.v_proj, params.value.weight), (attention.o_proj, params.mixed.weight), (block.pre_ff_layernorm, params.channel_norm.gain),
            (channel.gate_up_proj, np.concatenate([params.gate.weight, params.up.weight], axis=1)), (channel.down_proj, params.down.weight),
            (last, call.output.weight),
        ]  # fmt: skip
        adapters = (attention.linear_q_adapter_list, attention.linear_k_adapter_list, attention.linear_v_adapter_list, channel.gate_up_proj_adapter_list)
        for adapter, change in zip(adapters, call[1:], strict=True):
            shared += [(adapter[0][0], change.down), (adapter[0][1], change.up)]
        return shared

    for module, weight in pairs(*args[:2]):
        put(torch, module, weight)
    compare(torch, lambda x, e: last(block(x, e, 1, causal(torch, 5)).double()), pairs, args, num_heads=4)
