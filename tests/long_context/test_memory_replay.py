"""Memory replay: the gradients of back-propagation through time, without keeping what the steps keep."""

import gc
import tracemalloc
import weakref
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, cross_entropy, embedding, linear, trees
from minitransformers.basics.dropout import dropout
from minitransformers.basics.embedding import init_embedding
from minitransformers.basics.linear import Linear, init_linear
from minitransformers.long_context.memformer import init_memformer, memformer
from minitransformers.long_context.memory_replay import memory_replay

RNG = np.random.default_rng(0)
SEGMENTS = 4
PARAMS = init_memformer(RNG, 6, num_slots=3, num_layers=2, num_heads=2, d_hidden=5, dtype=np.float64)
PARAMS = trees.map(lambda leaf: leaf + RNG.normal(0, 0.2, leaf.shape), PARAMS)
X, SLOTS = RNG.normal(size=(SEGMENTS, 2, 5, 6)), RNG.normal(size=(2, 3, 6))
DOUT, DSLOTS = RNG.normal(size=X.shape), RNG.normal(size=SLOTS.shape)
STEP = partial(memformer, num_heads=2)


def through_time(params, x, memory=None, *, step=STEP, each=None):
    """Back-propagation through time as the textbook has it: the backward of every step is kept until the end."""
    outs, backwards, each = [], [], each or [{}] * len(x)
    for t, own in enumerate(each):
        (out, memory), backward = step(params, None if x is None else x[t], memory, **own)
        outs.append(out)
        backwards.append(backward)

    def whole_backward(dresult):
        douts, dmemory = dresult
        dparams, dxs = trees.zeros_like(params), []
        for backward, dout in zip(reversed(backwards), reversed(douts), strict=True):
            dstep, dx, dmemory = backward((dout, dmemory))
            dparams = trees.map(np.add, dparams, dstep)
            dxs.append(dx)
        return dparams, None if x is None else np.stack(dxs[::-1]), dmemory

    return (np.stack(outs), memory), whole_backward


@pytest.mark.parametrize("start", [SLOTS, None], ids=["slots from before", "a new text"])
def test_it_is_back_propagation_through_time_to_the_last_bit(start):
    (out, after), backward = memory_replay(PARAMS, X, start, step=STEP)
    (other_out, other_after), other_backward = through_time(PARAMS, X, start)
    np.testing.assert_array_equal(out, other_out)
    np.testing.assert_array_equal(after, other_after)
    own, theirs = backward((DOUT, DSLOTS)), other_backward((DOUT, DSLOTS))
    for (path, a), (_, b) in zip(trees.leaves(own), trees.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)
    assert (own[2] is None) == (start is None)


def cell(params, x, memory):
    """The recurrent network of old, whose state is its output."""
    hidden = np.tanh(x @ params[0] + memory @ params[1])

    def backward(dresult):
        dhidden = (dresult[0] + dresult[1]) * (1 - hidden**2)
        return [x.T @ dhidden, memory.T @ dhidden], dhidden @ params[0].T, dhidden @ params[1].T

    return (hidden, hidden), backward


def test_it_is_a_recurrence_written_out_and_its_gradients_are_autograd_s():
    rng = np.random.default_rng(1)
    into, over, x, memory, dout, dlast = (rng.normal(size=shape) for shape in ((4, 3), (3, 3), (5, 2, 4), (2, 3), (5, 2, 3), (2, 3)))

    def loss(into, over, x, memory):
        total = 0.0
        for t in range(5):
            memory = anp.tanh(anp.dot(x[t], into) + anp.dot(memory, over))
            total = total + anp.sum(dout[t] * memory)
        return total + anp.sum(dlast * memory)

    (out, after), backward = memory_replay([into, over], x, memory, step=cell)
    np.testing.assert_array_equal(out[-1], after)
    expected = autograd.grad(loss, (0, 1, 2, 3))(into, over, x, memory)
    (dinto, dover), dx, dmemory = backward((dout, dlast))
    for own, theirs in zip((dinto, dover, dx, dmemory), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def counted(step, alive):
    """The step, its backward marked so that one can see how many are there at once."""
    def counting(*args, **settings):
        result, backward = step(*args, **settings)

        def marked(dresult):
            return backward(dresult)

        alive.append(weakref.ref(marked))
        return result, marked

    return counting


@pytest.mark.parametrize("segments", [2, 5, 9])
def test_no_more_than_one_step_is_held_at_a_time(segments):
    x, alive, most = RNG.normal(size=(segments, 2, 5, 6)), [], []

    def watching(*args, **settings):
        most.append(sum(one() is not None for one in alive))
        return counted(STEP, alive)(*args, **settings)

    _, backward = memory_replay(PARAMS, x, SLOTS, step=watching)
    gc.collect()
    assert sum(one() is not None for one in alive) <= 1       # the last step's, until it is written over
    backward((np.zeros((segments, 2, 5, 6)), None))
    assert len(most) == 2 * segments and max(most) <= 1
    kept: list = []
    held = through_time(PARAMS, x, SLOTS, step=counted(STEP, kept))
    assert sum(one() is not None for one in kept) == segments and held


def model(rng, vocabulary=7, d_model=16):
    """A language model around it whose step returns the loss of a segment, a single number."""
    params = [
        init_embedding(rng, vocabulary, d_model, std=1.0, dtype=np.float64),
        init_memformer(rng, d_model, num_slots=3, num_layers=1, num_heads=2, d_hidden=d_model, dtype=np.float64),
        init_linear(rng, d_model, vocabulary, dtype=np.float64),
    ]

    def step(params, x, slots, *, ids):
        tokens, table_backward = embedding(params[0], ids=ids)
        (out, slots), body_backward = memformer(params[1], tokens, slots, num_heads=2)
        logits, head_backward = linear(params[2], out)
        loss, loss_backward = cross_entropy(logits, targets=ids)

        def backward(dresult):
            dhead, dout = head_backward(loss_backward(dresult[0]))
            dbody, dtokens, dslots = body_backward((dout, dresult[1]))
            return [table_backward(dtokens), dbody, dhead], None, dslots

        return (loss, slots), backward

    return params, step


def peak(run, segments):
    """The most that is held at once while a gradient is taken, in bytes, without what the caller holds."""
    params, step = model(np.random.default_rng(2))
    each = [{"ids": ids} for ids in np.random.default_rng(3).integers(7, size=(segments, 2, 30))]
    dlosses = np.full(segments, 1 / segments)
    gc.collect()
    tracemalloc.start()
    _, backward = run(params, None, None, step=step, each=each)
    backward((dlosses, None))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_the_memory_it_takes_does_not_grow_with_the_text():
    peak(memory_replay, 1)                                    # what is imported and cached on first use
    own, theirs = ({n: peak(run, n) for n in (3, 16)} for run in (memory_replay, through_time))
    assert own[16] < 1.3 * own[3]
    assert theirs[16] > 3 * theirs[3]


def test_a_whole_model_gives_the_gradients_of_through_time():
    params, step = model(np.random.default_rng(2))
    each = [{"ids": ids} for ids in np.random.default_rng(3).integers(7, size=(5, 2, 6))]
    dlosses = RNG.normal(size=5)
    (losses, slots), backward = memory_replay(params, None, step=step, each=each)
    (other_losses, other_slots), other_backward = through_time(params, None, step=step, each=each)
    np.testing.assert_array_equal(losses, other_losses)
    np.testing.assert_array_equal(slots, other_slots)
    dparams, dx, dmemory = backward((dlosses, None))
    assert losses.shape == (5,) and dx is None and dmemory is None
    for (path, a), (_, b) in zip(trees.leaves(dparams), trees.leaves(other_backward((dlosses, np.zeros_like(slots)))[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12, err_msg=path)
    report = check_gradients(lambda params: _losses_alone(memory_replay(params, None, step=step, each=each)), params)
    assert report.passed, str(report)


def _losses_alone(result):
    (losses, _), backward = result
    return losses, lambda dlosses: backward((dlosses, None))[0]


def test_a_step_that_drops_features_drops_the_same_ones_on_the_way_back():
    def noisy(params, x, memory, *, rng):
        (out, memory), step_backward = memformer(params, x, memory, num_heads=2)
        out, drop_backward = dropout(out, rate=0.5, rng=rng)
        return (out, memory), lambda dresult: step_backward((drop_backward(dresult[0]), dresult[1]))

    generators = np.random.default_rng(4).spawn(SEGMENTS)
    before = [rng.bit_generator.state for rng in generators]
    (out, _), backward = memory_replay(PARAMS, X, SLOTS, step=noisy, each=[{"rng": rng} for rng in generators])
    (again, _), _ = memory_replay(PARAMS, X, SLOTS, step=noisy, each=[{"rng": rng} for rng in generators])
    np.testing.assert_array_equal(out, again)
    assert [rng.bit_generator.state for rng in generators] == before
    zeros = out == 0
    assert 0.3 < zeros.mean() < 0.7 and np.abs(zeros[0] ^ zeros[1]).mean() > 0.3
    _, theirs = through_time(PARAMS, X, SLOTS, step=noisy, each=[{"rng": rng} for rng in generators])
    for a, b in zip(backward((DOUT, DSLOTS))[1:], theirs((DOUT, DSLOTS))[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="each: got one generator in several places"):
        memory_replay(PARAMS, X, SLOTS, step=noisy, each=[{"rng": generators[0]}] * SEGMENTS)


def test_a_memory_may_be_a_tree():
    def step(params, x, memory):
        total, last = memory

        def backward(dresult):
            dout, (dtotal, dlast) = dresult
            return np.sum(dout * x), params * dout + dtotal + dlast, (dtotal + params * 0, np.zeros_like(last) + dout)

        return (params * x + last, (total + x, x)), backward

    start = (np.zeros((2, 3)), np.ones((2, 3)))
    report = check_gradients(partial(memory_replay, step=step), np.array(0.7), RNG.normal(size=(4, 2, 3)), start)
    assert report.passed, str(report)


@pytest.mark.parametrize("forgotten", ["the gradient of the memory", "the order of the segments", "the sum over segments"])
def test_the_check_refuses_a_backward_that_forgets(forgotten):
    """The first is truncated back-propagation: right for the last segment, and for no other."""
    def wrong(params, x, memory):
        result, backward = memory_replay(params, x, memory, step=cell)
        memories = [memory, *result[0]]

        def careless(dresult):
            dparams, dx, dmemory = backward(dresult)
            parts = [cell(params, x[t], memories[t])[1]((dresult[0][t], 0)) for t in range(len(x))]
            if forgotten == "the gradient of the memory":
                return trees.map(lambda *leaves: sum(leaves), *(part[0] for part in parts)), np.stack([part[1] for part in parts]), parts[0][2]
            return (dparams, dx[::-1], dmemory) if forgotten == "the order of the segments" else (parts[-1][0], dx, dmemory)

        return result, careless

    rng = np.random.default_rng(5)
    arguments = [rng.normal(size=(4, 3)), rng.normal(size=(3, 3))], rng.normal(size=(3, 2, 4)), rng.normal(size=(2, 3))
    assert check_gradients(partial(memory_replay, step=cell), *arguments).passed
    assert not check_gradients(wrong, *arguments).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="x: got None, wants segments"):
        memory_replay(PARAMS, None, SLOTS, step=STEP)
    with pytest.raises(ValueError, match="x: got None, wants segments"):
        memory_replay(PARAMS, None, SLOTS, step=STEP, each=[])
    with pytest.raises(ValueError, match="each: got settings of 1 segments, wants 4, as x has"):
        memory_replay(PARAMS, X, SLOTS, step=STEP, each=[{}])
    with pytest.raises(ValueError, match="slots: got shape"):
        memory_replay(PARAMS, X, SLOTS[:1], step=STEP)


def test_without_the_memory_s_gradient_the_first_segment_learns_nothing_of_the_last():
    only_last = np.zeros_like(DOUT)
    only_last[-1] = DOUT[-1]
    _, backward = memory_replay(PARAMS, X, SLOTS, step=STEP)
    assert np.abs(backward((only_last, None))[1][0]).max() > 0

    def stopped(params, x, memory):
        result, step_backward = STEP(params, x, memory)
        return result, lambda dresult: (*step_backward(dresult)[:2], np.zeros_like(memory))

    _, backward = memory_replay(PARAMS, X, SLOTS, step=stopped)
    np.testing.assert_array_equal(backward((only_last, None))[1][:-1], 0)


def test_a_lone_linear_step_keeps_its_dtype():
    def step(params, x, memory):
        out, backward = linear(params, x)
        return (out, memory + out), lambda dresult: (*backward(dresult[0] + dresult[1]), dresult[1])

    params = Linear(np.ones((2, 2), np.float32), None)
    (out, after), backward = memory_replay(params, np.ones((3, 4, 2), np.float32), np.zeros((4, 2), np.float32), step=step)
    gradients = backward((out, after))
    assert {leaf.dtype for _, leaf in trees.leaves(((out, after), gradients))} == {np.dtype(np.float32)}


@pytest.mark.parity
def test_its_gradients_through_a_recurrent_network_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.RNN(4, 3, bias=False).double()
    rng = np.random.default_rng(6)
    into, over, x, memory, dout = (rng.normal(size=shape) for shape in ((4, 3), (3, 3), (7, 2, 4), (2, 3), (7, 2, 3)))
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(torch.tensor(into.T))
        theirs.weight_hh_l0.copy_(torch.tensor(over.T))
    segments, start = torch.tensor(x, requires_grad=True), torch.tensor(memory, requires_grad=True)
    outs, _ = theirs(segments, start[None])
    (outs * torch.tensor(dout)).sum().backward()
    (out, _), backward = memory_replay([into, over], x, memory, step=cell)
    np.testing.assert_allclose(out, outs.detach().numpy(), rtol=0, atol=1e-9)
    (dinto, dover), dx, dmemory = backward((dout, None))
    pairs = (dinto, theirs.weight_ih_l0.grad.T), (dover, theirs.weight_hh_l0.grad.T), (dx, segments.grad), (dmemory, start.grad)
    for own, other in pairs:
        np.testing.assert_allclose(own, other.numpy(), rtol=0, atol=1e-9)
