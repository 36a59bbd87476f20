"""The rank-one recurrence: dense matrices, what it is with parts of it switched off, and the gradients of all that."""

import tracemalloc

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from naive_delta_rule import assert_same, everything, naive_rank_one, unit

from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.delta_rule import delta_rule
from minitransformers.linear_attention.gated_recurrence import gated_recurrence
from minitransformers.linear_attention.rank_one_recurrence import rank_one_recurrence
from minitransformers.linear_attention.rank_one_recurrence_chunked import rank_one_recurrence_chunked

FORMS = {"plain": (rank_one_recurrence, {}), "chunks of 1": (rank_one_recurrence_chunked, {"chunk": 1}),
         "chunks of 4": (rank_one_recurrence_chunked, {"chunk": 4}), "one chunk": (rank_one_recurrence_chunked, {"chunk": 64})}  # fmt: skip


def random_case(positions=7, d_head=3, d_value=4, seed=0, batch=()):
    """query, key, value, log_decay, read, write, state, and a dout for the two outputs. Reads are directions, writes minus shares of them."""
    rng = np.random.default_rng(seed)
    query, key, read, wide = (rng.normal(size=(*batch, positions, d_head)) for _ in range(4))
    value, state = rng.normal(size=(*batch, positions, d_value)), rng.normal(size=(*batch, d_head, d_value))
    read = unit(read)
    arguments = query, key, value, -rng.uniform(0.05, 1.0, size=query.shape), read, -read * rng.uniform(0.2, 1.0, size=read.shape) + wide / 5, state
    return arguments, (rng.normal(size=value.shape), rng.normal(size=state.shape))


@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("positions", [1, 2, 7])
def test_equals_the_product_of_dense_matrices_and_its_gradients(function, config, positions):
    arguments, (dout, dstate) = random_case(positions)

    def naive(query, key, value, log_decay, read, write, state):
        return naive_rank_one(query, key, value, anp.exp(log_decay), read, write, state)

    def loss(arguments):
        out, final = naive(*arguments)
        return anp.sum(dout * out) + anp.sum(dstate * final)

    own = everything(function, arguments, (dout, dstate), **config)
    assert_same(own, [*naive(*arguments), *autograd.grad(loss)(arguments)], atol=1e-11)


@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
def test_a_text_cut_anywhere_is_the_whole_text_with_every_gradient(function, config):
    (*arrays, state), (dout, dstate) = random_case(7, batch=(2, 3))
    out, final, *gradients = everything(function, (*arrays, state), (dout, dstate), **config)
    for cut in range(1, 7):
        first, last = ([a[..., slice(*ends), :] for a in (*arrays, dout)] for ends in ((0, cut), (cut, 7)))
        (left, middle), left_backward = function(*first[:-1], state, **config)
        (right, end), right_backward = function(*last[:-1], middle, **config)
        *after, dmiddle = right_backward((last[-1], dstate))
        *before, dstart = left_backward((first[-1], dmiddle))
        joined = [np.concatenate(pair, axis=-2) for pair in zip((left, *before), (right, *after), strict=True)]
        assert_same([joined[0], end, *joined[1:], dstart], [out, final, *gradients], atol=1e-11)


@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
def test_no_state_is_a_state_of_zeros_without_a_gradient(function, config):
    (*arrays, state), dout = random_case(5)
    *expected, _ = everything(function, (*arrays, np.zeros_like(state)), dout, **config)
    assert_same(everything(function, (*arrays, None), dout, **config), [*expected, None], atol=0)


@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
def test_with_decay_1_it_is_the_delta_rule_with_its_gradients(function, config):
    (query, key, value, log_decay, _, _, state), dout = random_case(7)
    key, beta = unit(key), np.random.default_rng(1).uniform(0.1, 1.0, size=7)
    out, final, dquery, dk, dv, dlog_decay, dread, dwrite, dstate = everything(
        function, (query, beta[:, None] * key, value, 0 * log_decay, -beta[:, None] * key, key, state), dout, **config
    )
    dscaled = dk - dread                                     # beta key stands as a key, and with a minus sign as what reads
    expected = everything(delta_rule, (query, key, value, beta, state), dout)
    assert_same([out, final, dquery, beta[:, None] * dscaled + dwrite, dv, np.vecdot(key, dscaled), dstate], expected, atol=1e-12)
    assert np.abs(dlog_decay).min() > 1e-3                   # it is at the edge, and told to come away from it


@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("silent", ["read", "write"])
def test_with_nothing_read_or_nothing_written_it_is_the_gated_recurrence(function, config, silent):
    (query, key, value, log_decay, read, write, state), dout = random_case(7)
    read, write = (0 * read, write) if silent == "read" else (read, 0 * write)
    *own, dread, dwrite, dstate = everything(function, (query, key, value, log_decay, read, write, state), dout, **config)
    heads = (a[None] for a in (query * 3**0.5, key, value, log_decay, state))  # which divides queries by the root of d_head
    out, final, dquery, *others, dbefore = everything(gated_recurrence, heads, [d[None] for d in dout])
    assert_same([*own, dstate], [a[0] for a in (out, final, dquery * 3**0.5, *others, dbefore)], atol=1e-12)
    asked, unasked = (dread, dwrite) if silent == "read" else (dwrite, dread)
    assert asked.any() and not unasked.any()


@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
def test_what_has_faded_completely_is_forgotten_without_a_nan(function, config):
    (query, key, value, log_decay, read, write, state), dout = random_case(9)
    log_decay[3] = log_decay[5] = -1e5
    read[3], read[5], dout[0][:5] = 0, 0, 0
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        out, final, *gradients = everything(function, (query, key, value, log_decay, read, write, state), dout, **config)
    tail = everything(function, (*(a[5:] for a in (query, key, value, log_decay, read, write)), 9 * state), (dout[0][5:], dout[1]), **config)
    assert_same([out[5:], final], tail[:2], atol=1e-13)
    assert not gradients[-1].any() and all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
def test_one_position_can_swap_two_rows_which_no_decay_can(function, config):
    # I - 2 d d^T with d = (1, -1) / sqrt(2): three words of such kind keep track of any permutation of three things.
    state, direction = np.arange(6.0).reshape(3, 2), np.array([[1.0, -1.0, 0.0]]) / 2**0.5
    nothing, zeros = np.zeros((1, 3)), np.zeros((1, 2))
    (_, swapped), _ = function(nothing, nothing, zeros, nothing, direction, -2 * direction, state, **config)
    np.testing.assert_allclose(swapped, state[[1, 0, 2]], rtol=0, atol=1e-14)


def test_the_query_sees_its_own_position_and_the_read_does_not():
    (query, key, value, log_decay, read, write, _), _ = random_case(2)
    (out, state), _ = rank_one_recurrence(query[:1], key[:1], value[:1], log_decay[:1], read[:1], write[:1])
    np.testing.assert_allclose(state, np.outer(key[0], value[0]), rtol=0, atol=1e-15)  # before it there was nothing to read
    np.testing.assert_allclose(out[0], np.dot(query[0], key[0]) * value[0], rtol=0, atol=1e-14)


def test_it_keeps_sqrt_of_the_states():
    def kept(positions):
        (*arrays, _), _ = random_case(positions, 16, 16)
        tracemalloc.start()
        out = rank_one_recurrence(*arrays)
        bytes_, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del out
        return bytes_ - 2 * arrays[2].nbytes                 # out, and the decays

    state = 16 * 16 * 8
    assert kept(400) < 1.5 * 20 * state
    assert kept(1600) < 1.5 * 40 * state


@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
def test_a_state_of_other_keys_or_another_batch_and_a_growing_decay_are_named(function, config):
    (*arrays, state), _ = random_case(3, batch=(2,))
    for wrong in (state[:1], state[:, :2], state[..., :3]):
        with pytest.raises(ValueError, match=r"state: "):
            function(*arrays, wrong, **config)
    with pytest.raises(ValueError, match=r"log_decay: "):
        function(*arrays[:3], -arrays[3], *arrays[4:], state, **config)


def with_what_is_found_taken_for_a_constant(query, key, value, log_decay, read, write, state):
    """A backward that forgets that what is written back had been read: no gradient through found."""
    out, backward = rank_one_recurrence(query, key, value, log_decay, read, write, state)

    def wrong(dout):
        states = [rank_one_recurrence(*(a[:t] for a in (query, key, value, log_decay, read, write)), state)[0][1] if t else state
                  for t in range(len(key))]  # fmt: skip
        found = np.stack([r @ S for r, S in zip(read, states, strict=True)])
        twice = [np.stack(pair, axis=1).reshape(2 * len(key), -1) for pair in  # first fade, and write what was found; then the rest
                 ((0 * query, query), (write, key), (found, value), (log_decay, 0 * log_decay))]  # fmt: skip
        _, constant = rank_one_recurrence(*twice, 0 * twice[0], 0 * twice[0], state)
        dtwice = constant((np.stack([0 * dout[0], dout[0]], axis=1).reshape(2 * len(key), -1), dout[1]))
        dquery, dkey, dvalue, dlog_decay = (d.reshape(len(key), 2, -1) for d in dtwice[:4])
        return dquery[:, 1], dkey[:, 1], dvalue[:, 1], dlog_decay[:, 0], backward(dout)[4], dkey[:, 0], dtwice[6]

    return out, wrong


def test_the_checker_refuses_a_state_that_is_not_asked_for_what_was_found():
    report = check_gradients(with_what_is_found_taken_for_a_constant, *random_case(4)[0], second_opinion=False)
    assert {a.path for a in report.arguments if a.error > 1e-3} == {"key", "value", "log_decay", "write", "state"}


@pytest.mark.parity
@pytest.mark.parametrize("function, config", FORMS.values(), ids=FORMS)
def test_it_is_the_loop_of_rwkv_7_in_torch(function, config):
    torch = pytest.importorskip("torch")
    arguments, dout = random_case(9, 4, 5, batch=(2, 3))
    query, key, value, log_decay, read, write, state = inputs = [torch.tensor(a, requires_grad=True) for a in arguments]
    S, rows = state.transpose(-1, -2), []                    # there a row is a feature of the values
    for t in range(9):
        moved = S @ read[..., t, :, None] @ write[..., t, None, :]
        S = S * log_decay[..., t, None, :].exp() + moved + value[..., t, :, None] @ key[..., t, None, :]
        rows.append((S @ query[..., t, :, None])[..., 0])
    results = torch.stack(rows, dim=-2), S.transpose(-1, -2)
    gradients = torch.autograd.grad(results, inputs, [torch.tensor(d) for d in dout])
    own = everything(function, arguments, dout, **config)
    assert_same(own, [a.detach().numpy() for a in (*results, *gradients)], atol=1e-11)
