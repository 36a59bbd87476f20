"""The slot before the core: what is done to queries and keys, alone and one after the other."""

from functools import partial

import numpy as np
import pytest

from minitransformers.attention.core import causal_attention
from minitransformers.attention.grouped_query_attention import (
    grouped_query_attention,
    grouped_query_attention_step,
    init_grouped_query_attention,
)
from minitransformers.attention.multi_head_attention import (
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.attention.prepare import on_both, unprepared
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.attention.sliding_window_attention import sliding_window_attention, sliding_window_attention_step
from minitransformers.basics.chain import chain
from minitransformers.foundation import check_gradients, trees, trusted
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.positional.rope import rope

BOTH = partial(chain, parts=(qk_norm, on_both(rope)))
MIXERS = {
    "multi_head_attention": (multi_head_attention, multi_head_attention_step, {"num_heads": 2}),
    "grouped_query_attention": (grouped_query_attention, grouped_query_attention_step, {"num_heads": 2, "num_kv_heads": 1}),
    "sliding_window_attention": (sliding_window_attention, sliding_window_attention_step, {"num_heads": 2, "window": 2}),
}


def case(name, n=5):
    rng, (function, step, config) = np.random.default_rng(0), MIXERS[name]
    if name == "multi_head_attention":
        params = init_multi_head_attention(rng, 4, num_heads=2, bias=False, dtype=np.float64)
    else:
        params = init_grouped_query_attention(rng, 4, num_heads=2, num_kv_heads=1, dtype=np.float64)
    params = params._replace(prepare=(QkNorm(*rng.normal(size=(2, 2))), None))
    config = {**config, "prepare": BOTH}
    return partial(function, **config), partial(step, **config), params, rng.normal(size=(2, n, 4))


def test_nothing_is_done_to_queries_and_keys_unless_asked_for():
    query, key, *douts = np.random.default_rng(1).normal(size=(4, 2, 3))
    both, backward = unprepared(None, query, key, positions=np.arange(2))
    assert both[0] is query and both[1] is key
    nothing, *gradients = backward(tuple(douts))
    assert nothing is None
    np.testing.assert_array_equal(gradients, douts)


def test_what_is_done_to_both_knows_the_positions_of_the_call():
    query, key, *douts = np.random.default_rng(2).normal(size=(4, 3, 4))
    positions = np.array([7, 2, 5])
    (turned_query, turned_key), backward = on_both(rope)(None, query, key, positions=positions)
    for turned, plain in ((turned_query, query), (turned_key, key)):
        np.testing.assert_array_equal(turned, rope(plain, positions=positions)[0])
    nothing, *gradients = backward(tuple(douts))
    assert nothing is None
    for own, plain, dout in zip(gradients, (query, key), douts, strict=True):
        np.testing.assert_array_equal(own, rope(plain, positions=positions)[1](dout))


@pytest.mark.parametrize("prepare", [unprepared, on_both(rope)])
def test_what_was_learned_is_not_dropped_in_silence(prepare):
    with pytest.raises(ValueError, match="params: got QkNorm, wants None"):
        prepare(QkNorm(np.ones(4), np.ones(4)), *np.ones((2, 3, 4)))


def test_a_chain_does_one_after_the_other_in_its_order():
    rng = np.random.default_rng(3)
    q, k, v = rng.normal(size=(3, 2, 5, 4))
    gains = QkNorm(*rng.normal(size=(2, 4)))
    normed, _ = qk_norm(gains, q, k)
    wanted = scaled_dot_product_attention(*(rope(a)[0] for a in normed), v)[0]
    (query, key), _ = BOTH((gains, None), q, k, positions=None)
    np.testing.assert_allclose(scaled_dot_product_attention(query, key, v)[0], wanted, rtol=0, atol=1e-14)
    (query, key), _ = chain((None, gains), q, k, parts=(on_both(rope), qk_norm), positions=None)
    assert np.abs(scaled_dot_product_attention(query, key, v)[0] - wanted).max() > 1e-2


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_pass_through_a_chain_in_every_attention(name):
    call, _, params, x = case(name)
    report = trusted(check_gradients)(call, params, x[:1, :3], second_opinion=False)
    assert report.passed, str(report)
    assert {"params.prepare.0.query_gain", "params.prepare.0.key_gain"} <= {argument.path for argument in report.arguments}
    dprepare = call(params, x)[1](np.cos(x))[0].prepare
    assert dprepare[1] is None and all(part.all() for part in dprepare[0])


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("sizes", [[1] * 5, [5], [2, 1, 2]])
def test_steps_prepare_the_new_positions_at_their_places(sizes, name):
    call, step, params, x = case(name)
    state, outs, start = None, [], 0
    for size in sizes:
        out, state = step(params, x[:, start : start + size], state)
        outs.append(out)
        start += size
    np.testing.assert_allclose(np.concatenate(outs, axis=1), call(params, x)[0], rtol=0, atol=1e-13)


def test_keys_are_kept_prepared():
    _, step, params, x = case("multi_head_attention")
    _, state = step(params, x, None)
    heads = (x @ params.key.weight).reshape(2, 5, 2, 2).swapaxes(1, 2)
    np.testing.assert_allclose(state.keys, rope(qk_norm(params.prepare[0], heads, heads)[0][1])[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", MIXERS)
def test_a_prepare_and_what_it_learns_must_belong_together(name):
    call, _, params, x = case(name)
    with pytest.raises(ValueError, match="params: got tuple, wants None: unprepared learns nothing"):
        call(params, x, prepare=unprepared)
    with pytest.raises(ValueError, match="params: got NoneType, wants a tuple with an entry for each of the 2 parts"):
        call(params._replace(prepare=None), x)
    with pytest.raises(ValueError, match="prepare: got"):
        call(params, x, prepare="qk_norm")


def test_the_checker_refuses_a_backward_that_undoes_a_chain_in_the_order_of_the_forward():
    gains, (q, k) = QkNorm(*np.random.default_rng(4).normal(size=(2, 4))), np.random.default_rng(5).normal(size=(2, 3, 4))

    def wrong(gains, q, k):
        (query, key), norm_backward = qk_norm(gains, q, k)
        both, turn_backward = on_both(rope)(None, query, key)

        def in_the_same_order(dboth):
            dgains, *through = norm_backward(dboth)
            return dgains, *turn_backward(tuple(through))[1:]

        return both, in_the_same_order

    report = check_gradients(wrong, gains, q, k)
    assert not report.passed and report.error > 1e-2


def test_the_gradients_of_the_whole_are_those_of_the_parts_put_together():
    """Projections, prepare and core by hand, each undone by its own backward."""
    call, _, params, x = case("multi_head_attention")
    out, backward = call(params, x)
    heads = [(x @ part.weight).reshape(2, 5, 2, 2).swapaxes(1, 2) for part in params[:3]]
    (query, key), prepare_backward = BOTH(params.prepare, heads[0], heads[1], positions=None)
    mixed, core_backward = causal_attention(None, query, key, heads[2])
    merged = mixed.swapaxes(1, 2).reshape(2, 5, 4)
    np.testing.assert_allclose(out, merged @ params.output.weight, rtol=0, atol=1e-14)
    dout = np.cos(out)
    _, dquery, dkey, dvalue, _ = core_backward((dout @ params.output.weight.T).reshape(2, 5, 2, 2).swapaxes(1, 2))
    dprepare, dquery, dkey = prepare_backward((dquery, dkey))
    dheads = [part.swapaxes(1, 2).reshape(2, 5, 4) for part in (dquery, dkey, dvalue)]
    dparams, dx, _ = backward(dout)
    np.testing.assert_allclose(dx, sum(d @ part.weight.T for d, part in zip(dheads, params[:3], strict=True)), rtol=0, atol=1e-13)
    for d, own in zip(dheads, dparams[:3], strict=True):
        np.testing.assert_allclose(own.weight, np.einsum("bni,bnj->ij", x, d), rtol=0, atol=1e-13)
    for (_, own), (_, theirs) in zip(trees.leaves(dparams.prepare), trees.leaves(dprepare), strict=True):
        np.testing.assert_array_equal(own, theirs)
