"""Recurrent attention: the projections written out naively, steps without a cache, slots, and a model that is trained with it."""

import inspect
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from naive_linear_attention import naive_linear_attention

from minitransformers import catalogue
from minitransformers.attention.multi_head_attention import init_multi_head_attention
from minitransformers.attention.prepare import on_both
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne
from minitransformers.basics.chain import chain
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients, trees, trusted
from minitransformers.linear_attention.linear_attention import linear_attention
from minitransformers.linear_attention.linear_attention_chunked import linear_attention_chunked
from minitransformers.linear_attention.linear_attention_recurrent import linear_attention_recurrent
from minitransformers.linear_attention.performer import performer
from minitransformers.linear_attention.recurrent_attention import (
    RecurrentAttention,
    init_recurrent_attention,
    recurrent_attention,
    recurrent_attention_step,
)
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model, language_model_step
from minitransformers.norms.qk_norm import init_qk_norm, qk_norm
from minitransformers.positional.rope import rope

checked = trusted(check_gradients)                           # the shapes are known to fit


def random_params(rng, d_model=6, d_heads=4, d_values=None, bias=True):
    d_values = d_heads if d_values is None else d_values
    shapes = (d_model, d_heads), (d_model, d_heads), (d_model, d_values), (d_values, d_model)
    return RecurrentAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1]) if bias else None) for s in shapes))


def textbook(params, x, num_heads):
    """One head of one sequence at a time, one feature slice a head."""
    (w_query, b_query), (w_key, b_key), (w_value, b_value), (w_output, b_output) = params
    d, d_value = w_query.shape[1] // num_heads, w_value.shape[1] // num_heads
    sequences = []
    for sequence in x:
        heads = []
        for h in range(num_heads):
            own, values = slice(h * d, (h + 1) * d), slice(h * d_value, (h + 1) * d_value)
            query, key = (anp.dot(sequence, w[:, own]) + b[own] for w, b in ((w_query, b_query), (w_key, b_key)))
            value = anp.dot(sequence, w_value[:, values]) + b_value[values]
            heads.append(naive_linear_attention(query, key, value, np.zeros((d, d_value + 1)))[0])
        sequences.append(anp.dot(anp.concatenate(heads, axis=1), w_output) + b_output)
    return anp.stack(sequences)


@pytest.mark.parametrize("num_heads, d_values", [(1, 4), (2, 2), (4, 8)])
def test_equals_one_head_at_a_time_and_its_gradients(num_heads, d_values):
    rng = np.random.default_rng(0)
    params, x, dout = random_params(rng, d_values=d_values), rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 6))
    out, backward = recurrent_attention(params, x, num_heads=num_heads)
    plain = tuple(tuple(part) for part in params[:4])
    np.testing.assert_allclose(out, textbook(plain, x, num_heads), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, num_heads)), (0, 1))(plain, x)
    for (path, own), (_, theirs) in zip(trees.leaves(backward(dout)), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11, err_msg=path)


RECURRENCES = {
    "plain": linear_attention, "recurrent": linear_attention_recurrent, "chunks of 2": partial(linear_attention_chunked, chunk=2),
    "performer": partial(performer, num_features=5),
}  # fmt: skip
PREPARES = {"nothing": {}, "a rotation": {"prepare": on_both(rope)}, "a norm and a rotation": {"prepare": partial(chain, parts=(qk_norm, on_both(rope)))}}


@pytest.mark.parametrize("form", ["plain", "recurrent", "chunks of 2"])
def test_every_form_of_the_recurrence_gives_the_same(form):
    rng = np.random.default_rng(1)
    params, x = random_params(rng), rng.normal(size=(2, 7, 6))
    results = [recurrent_attention(params, x, num_heads=2, recurrence=r) for r in (RECURRENCES[form], linear_attention_chunked)]
    (own, own_backward), (out, backward) = results
    np.testing.assert_allclose(own, out, rtol=0, atol=1e-12)
    for (path, a), (_, b) in zip(trees.leaves(own_backward(x)), trees.leaves(backward(x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12, err_msg=path)


@pytest.mark.parametrize("prepare", PREPARES)
@pytest.mark.parametrize("recurrence", RECURRENCES)
@pytest.mark.parametrize("pieces", [(1,) * 9, (5, 1, 1, 1, 1), (2, 4, 3), (9,)])
def test_a_prefill_and_steps_equal_the_whole_pass(pieces, recurrence, prepare):
    rng = np.random.default_rng(2)
    params, x = random_params(rng, d_values=6), rng.normal(size=(2, 9, 6))
    params = params._replace(prepare=(init_qk_norm(rng, 2, dtype=np.float64), None) if "norm" in prepare else None)
    settings = {"num_heads": 2, "recurrence": RECURRENCES[recurrence], **PREPARES[prepare]}
    whole, _ = recurrent_attention(params, x, **settings)
    state, outs, sizes = None, [], set()
    for piece in np.split(x, np.cumsum(pieces)[:-1], axis=1):
        out, state = recurrent_attention_step(params, piece, state, **settings)
        outs.append(out)
        sizes.add(state.state.shape)
    np.testing.assert_allclose(np.concatenate(outs, axis=1), whole, rtol=0, atol=1e-12)
    assert sizes == {(2, 2, 5 if recurrence == "performer" else 2, 4)} and state.length == 9  # of one size, however long the text


def test_a_step_writes_to_nothing():
    rng = np.random.default_rng(3)
    params, x = random_params(rng), rng.normal(size=(2, 4, 6))
    _, state = recurrent_attention_step(params, x, None, num_heads=2)
    before = state.state.copy()
    first, second = (recurrent_attention_step(params, x, state, num_heads=2)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(state.state, before)


def test_no_output_sees_a_later_input_or_another_sequence():
    rng = np.random.default_rng(4)
    params, x = random_params(rng), rng.normal(size=(2, 6, 6))
    changed = x.copy()
    changed[1, 3] += 1
    before, after = (recurrent_attention(params, a, num_heads=2)[0] for a in (x, changed))
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1, :3], after[1, :3])
    assert (before[1, 3:] != after[1, 3:]).any(-1).all()


def told(seen):
    """A prepare that notes the positions it is told."""

    def prepare(params, query, key, *, positions):
        seen.append(positions)
        return (query, key), lambda dboth: (None, *dboth)

    return prepare


def test_a_prepare_is_told_the_positions_none_for_a_whole_text():
    params, x, seen = random_params(np.random.default_rng(0)), np.ones((1, 3, 6)), []
    recurrent_attention(params, x, num_heads=2, prepare=told(seen))
    _, state = recurrent_attention_step(params, x, None, num_heads=2, prepare=told(seen))
    recurrent_attention_step(params, x[:, :2], state, num_heads=2, prepare=told(seen))
    assert seen[0] is None and seen[1].tolist() == [0, 1, 2] and seen[2].tolist() == [3, 4]


def fading(params, query, key, value, state=None):
    """A recurrence that learns a factor for each head, by which values are multiplied: for what is in the slot."""
    (heads, after), backward = linear_attention_chunked(None, query, key, value * params[:, None, None], state)

    def with_factor(dresult):
        _, dquery, dkey, dvalue, dstate = backward(dresult)
        axes = tuple(i for i in range(value.ndim) if i != value.ndim - 3)
        return (dvalue * value).sum(axes), dquery, dkey, dvalue * params[:, None, None], dstate

    return (heads, after), with_factor


def test_what_the_slots_learn_is_trained_with_the_projections():
    rng = np.random.default_rng(5)
    learned = {"prepare": (init_qk_norm(rng, 2, dtype=np.float64), None), "recurrence": np.array([0.5, -1.5])}
    params, x = random_params(rng)._replace(**learned), rng.normal(size=(2, 3, 6))
    call = partial(recurrent_attention, num_heads=2, recurrence=fading, prepare=partial(chain, parts=(qk_norm, on_both(rope))))
    report = checked(call, params, x, second_opinion=False)
    assert report.passed, str(report)
    assert {"params.recurrence", "params.prepare.0.query_gain"} <= {argument.path for argument in report.arguments}


def test_it_starts_as_multi_head_attention_does():
    drawn = [init(np.random.default_rng(6), 8, num_heads=2, std=0.3, residual_std=0.1, bias=False) for init in (init_recurrent_attention, init_multi_head_attention)]
    assert type(drawn[0]) is RecurrentAttention
    for (path, own), (other_path, theirs) in zip(trees.leaves(drawn[0]), trees.leaves(drawn[1]), strict=True):
        assert path == other_path and own.dtype == np.float32
        np.testing.assert_array_equal(own, theirs)
    assert init_recurrent_attention(np.random.default_rng(6), 8, num_heads=2, dtype=np.float64).query.bias.dtype == np.float64


@pytest.mark.parametrize(("d_heads", "d_values"), [(4, 6), (6, 4)])
def test_heads_must_divide_the_queries_and_the_values(d_heads, d_values):
    params = RecurrentAttention(*(Linear(np.ones(s), None) for s in ((6, d_heads), (6, d_heads), (6, d_values), (d_values, 6))))
    with pytest.raises(ValueError, match="num_heads"):
        recurrent_attention(params, np.ones((2, 4, 6)), num_heads=3)


def test_what_is_learned_for_another_number_of_heads_is_refused():
    params = random_params(np.random.default_rng(1))._replace(recurrence=SoftmaxOffByOne(np.ones(4)))
    with pytest.raises(ValueError, match=r"params.recurrence.sink: got 4 heads, wants num_heads = 2"):
        recurrent_attention(params, np.ones((2, 3, 6)), num_heads=2, recurrence=fading)


def test_it_takes_neither_a_mask_nor_a_bias():
    taken = inspect.signature(recurrent_attention).parameters
    assert "mask" not in taken and "bias" not in taken
    config = LanguageModelConfig(vocabulary_size=5, context=6, d_model=4, num_layers=1, num_heads=2, mixer="recurrent_attention")
    params = init_language_model(np.random.default_rng(7), config)
    with pytest.raises(ValueError, match="mask: got a mask, wants None: recurrent_attention has no place for one"):
        language_model(params, ids=np.array([[1, 2]]), config=config, mask=np.ones((1, 1, 2, 2), bool))


# In a language model -----------------------------------------------------------------------------------------------------------

OPTIONS = {
    "the default": {}, "linear_attention": {"recurrence": "linear_attention", "recurrence.chunk": 2},
    "performer": {"recurrence": "performer", "recurrence.num_features": 3},
    "random features by name": {
        "recurrence": "linear_attention", "recurrence.feature_map": "positive_random_features", "recurrence.feature_map.num_features": 3,
    },
    "a norm first": {"recurrence": "linear_attention", "recurrence.feature_map": "elu_plus_one", "prepare": "qk_norm"},
}  # fmt: skip


def model(name, **changes):
    settings = {"vocabulary_size": 5, "context": 12, "d_model": 6, "num_layers": 2, "num_heads": 3, "position": "rope", **changes}
    config = LanguageModelConfig(mixer="recurrent_attention", options={"mixer": OPTIONS[name], "channel": {"d_hidden": 4}}, **settings)
    return init_language_model(np.random.default_rng(8), config, std=0.5, dtype=np.float64), config


@pytest.mark.parametrize("position", ["rope", "learned", "none"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_language_model_takes_it_by_name_and_decoding_is_the_whole_pass(name, position):
    params, config = model(name, position=position)
    ids = np.random.default_rng(9).integers(5, size=(2, 9))
    logits, _ = language_model(params, ids=ids, config=config)
    np.testing.assert_allclose(language_model(params, ids=ids[:, :4], config=config)[0], logits[:, :4], rtol=0, atol=1e-12)
    for pieces in ((1,) * 9, (4, 1, 1, 3)):
        state, outs = None, []
        for piece in np.split(ids, np.cumsum(pieces)[:-1], axis=1):
            out, state = language_model_step(params, piece, state, config=config)
            outs.append(out)
        np.testing.assert_allclose(np.concatenate(outs, axis=1), logits, rtol=0, atol=1e-12)


def test_a_name_stands_for_its_form_in_chunks_and_the_mixer_has_a_step():
    _, config = model("linear_attention")
    part = config.mixers[0].slots["recurrence"]
    assert part.entry.function is linear_attention_chunked and part.options == {"chunk": 2}
    assert catalogue.find("recurrent_attention", role="mixer").step is recurrent_attention_step


def test_random_features_by_name_are_performer():
    (params, one), (_, other) = model("random features by name"), model("performer")
    ids = np.array([[0, 1, 2, 3, 4, 0, 2]])
    np.testing.assert_array_equal(*(language_model(params, ids=ids, config=config)[0] for config in (one, other)))


@pytest.mark.parametrize("name", ["performer", "linear_attention"])
def test_gradients_in_a_language_model_are_right(name):
    params, config = model(name, num_layers=1)
    ids = np.random.default_rng(10).integers(5, size=(1, 4))
    report = checked(language_model, params, ids=ids, config=config, second_opinion=False)
    assert report.passed, str(report)


@pytest.mark.parametrize("name", OPTIONS)
def test_training_lowers_the_loss(name):
    params, config = model(name, num_layers=1)
    ids, targets = np.random.default_rng(11).integers(5, size=(2, 3, 6))
    losses = []
    for _ in range(20):
        logits, backward = language_model(params, ids=ids, config=config)
        loss, loss_backward = cross_entropy(logits, targets=targets)
        losses.append(float(loss))
        params = trees.map(lambda leaf, gradient: leaf - 0.1 * gradient, params, backward(loss_backward(np.ones_like(loss))))
    assert losses[-1] < losses[0] - 0.1


def test_a_feature_map_or_a_recurrence_that_is_none_is_refused_with_what_is_near():
    with pytest.raises(ValueError, match="unknown recurrence 'perfomer'; did you mean 'performer'"):
        LanguageModelConfig(5, mixer="recurrent_attention", options={"mixer": {"recurrence": "perfomer"}})
    with pytest.raises(ValueError, match="unknown feature_map 'relu'"):
        LanguageModelConfig(
            5, mixer="recurrent_attention", options={"mixer": {"recurrence": "linear_attention", "recurrence.feature_map": "relu"}}
        )


def value_path_alone(params, x):
    """dx of one projection in three."""
    out, backward = recurrent_attention(params, x, num_heads=2)

    def wrong(dout):
        dparams, _ = backward(dout)
        recurrence_backward = heads_of(params, x)[1]
        dheads = dout @ params.output.weight.T
        dvalue = recurrence_backward((dheads.reshape(*x.shape[:-1], 2, -1).swapaxes(-2, -3), None))[3]
        return dparams, dvalue.swapaxes(-2, -3).reshape(*x.shape[:-1], -1) @ params.value.weight.T

    return out, wrong


def heads_of(params, x):
    parts = (x @ part.weight + part.bias for part in params[:3])
    return linear_attention(None, *(part.reshape(*x.shape[:-1], 2, -1).swapaxes(-2, -3) for part in parts))


def test_the_checker_refuses_one_term_of_three():
    rng = np.random.default_rng(12)
    report = check_gradients(value_path_alone, random_params(rng), rng.normal(size=(1, 3, 6)), second_opinion=False)
    assert not report.passed and report.worst.path == "x"


@pytest.mark.parity
@pytest.mark.parametrize("rotated", [True, False])
def test_parity_with_running_sums_in_torch(rotated):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(13)
    params, x, dout = random_params(rng), rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 5, 6))
    theirs = trees.map(lambda leaf: torch.tensor(leaf, requires_grad=True), params)
    their_x = torch.tensor(x, requires_grad=True)
    query, key, value = ((their_x @ part.weight + part.bias).unflatten(-1, (2, -1)).transpose(1, 2) for part in theirs[:3])
    if rotated:                                              # two features a head: one pair, whose angle is the position
        angle = torch.arange(5, dtype=torch.float64)
        turn = torch.stack([torch.stack([angle.cos(), angle.sin()], -1), torch.stack([-angle.sin(), angle.cos()], -1)], -2)
        query, key = (torch.einsum("bhni,nij->bhnj", a, turn) for a in (query, key))
    q, k = (torch.nn.functional.elu(a) + 1 for a in (query, key))
    sums = (k[..., :, None] * value[..., None, :]).cumsum(2)
    heads = torch.einsum("bhnf,bhnfp->bhnp", q, sums) / (q * k.cumsum(2)).sum(-1, keepdim=True)
    expected = heads.transpose(1, 2).flatten(-2) @ theirs.output.weight + theirs.output.bias
    expected.backward(torch.tensor(dout))
    out, backward = recurrent_attention(params, x, num_heads=2, **({"prepare": on_both(rope)} if rotated else {}))
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, expected.detach(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dx, their_x.grad, rtol=0, atol=1e-11)
    for (path, own), (_, other) in zip(trees.leaves(dparams), trees.leaves(theirs), strict=True):
        np.testing.assert_allclose(own, other.grad, rtol=0, atol=1e-11, err_msg=path)
