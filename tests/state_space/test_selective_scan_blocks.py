"""Selective scan in blocks: equal to the plain form in every order of work, and what it keeps meanwhile."""

import tracemalloc

import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.state_space.selective_scan import selective_scan
from minitransformers.state_space.selective_scan_blocks import _blocks, selective_scan_blocks

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "state")
ORDERS = [("sequential", 1), ("sequential", 2), ("sequential", 7), ("associative", 64), ("chunked", 1), ("chunked", 3), ("chunked", 64)]
MISSING = [(), ("D",), ("z",), ("state",), ("D", "z", "state")]


def random_call(rng, *batch, n=5, d_inner=6, groups=3, d_state=4, without=()):
    rows, shared = (*batch, n, d_inner), (*batch, n, groups, d_state)
    u, z, B, C = (rng.normal(size=shape) for shape in (rows, rows, shared, shared))
    A, D, state = -rng.uniform(0.3, 2, (d_inner, d_state)), rng.normal(size=d_inner), rng.normal(size=(*batch, d_inner, d_state))
    call = (u, rng.uniform(0.1, 1.5, size=rows), A, B, C, D, z, state)
    return tuple(None if name in without else value for name, value in zip(NAMES, call, strict=True))


def everything(scan, call, dout, **config):
    """Outputs and gradients by name; None where an argument was None."""
    (out, last), backward = scan(*call, **config)
    gradients = zip((f"d{name}" for name in NAMES), backward(dout), strict=True)
    return {"out": out, "last": last, **dict(gradients)}


def assert_same(own, theirs):
    for name, expected in theirs.items():
        assert (own[name] is None) == (expected is None), name
        if expected is not None:
            np.testing.assert_allclose(own[name], expected, rtol=0, atol=1e-12, err_msg=name)


def random_dout(rng, call):
    u, A = call[0], call[2]
    return rng.normal(size=u.shape), rng.normal(size=(*u.shape[:-2], *A.shape))


@pytest.mark.parametrize("without", MISSING, ids=str)
@pytest.mark.parametrize("form, chunk", ORDERS)
@pytest.mark.parametrize("n", [1, 2, 8, 13])
def test_equals_the_plain_form_with_all_gradients(n, form, chunk, without):
    rng = np.random.default_rng(1)
    call = random_call(rng, 2, n=n, without=without)
    dout = random_dout(rng, call)
    assert_same(everything(selective_scan_blocks, call, dout, form=form, chunk=chunk), everything(selective_scan, call, dout))


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_equals_the_plain_form_under_any_batch_axes_and_groups(groups, batch):
    rng = np.random.default_rng(2)
    call = random_call(rng, *batch, groups=groups)
    dout = random_dout(rng, call)
    assert_same(everything(selective_scan_blocks, call, dout, chunk=2), everything(selective_scan, call, dout))


@pytest.mark.parametrize("part", [0, 1])
def test_a_gradient_that_is_none_is_zero(part):
    rng = np.random.default_rng(3)
    call = random_call(rng, 2)
    dout = list(random_dout(rng, call))
    dout[part] = None
    assert_same(everything(selective_scan_blocks, call, tuple(dout), chunk=2), everything(selective_scan, call, tuple(dout)))


@pytest.mark.parametrize("form", ["sequential", "associative", "chunked"])
@pytest.mark.parametrize("cut", [1, 4, 8])
def test_two_parts_that_pass_on_the_state_equal_the_plain_whole_with_their_gradients(cut, form):
    rng = np.random.default_rng(4)
    u, delta, A, B, C, D, z, state = call = random_call(rng, 2, n=9)
    dout, dlast = random_dout(rng, call)
    whole = everything(selective_scan, call, (dout, dlast))
    left, right = ([a[:, part] for a in (u, delta, B, C, z)] for part in (slice(cut), slice(cut, None)))
    run = lambda part, start: selective_scan_blocks(*part[:2], A, *part[2:4], D, part[4], start, form=form, chunk=2)  # noqa: E731
    (left_out, middle), left_backward = run(left, state)
    (right_out, last), right_backward = run(right, middle)
    right_du, _, right_dA, *_, dmiddle = right_backward((dout[:, cut:], dlast))
    left_du, _, left_dA, *_, dstate = left_backward((dout[:, :cut], dmiddle))
    own = {"out": np.concatenate([left_out, right_out], axis=1), "last": last, "du": np.concatenate([left_du, right_du], axis=1)}
    own |= {"dA": left_dA + right_dA, "dstate": dstate}
    assert_same(own, {name: whole[name] for name in own})


@pytest.mark.parametrize("form", ["sequential", "associative", "chunked"])
@pytest.mark.parametrize("size", [1e3, 1e19])
def test_long_steps_and_fast_rates_stay_finite_in_float32(size, form):
    # delta A is -1e6, then -inf: the decay is 0, and so is its gradient.
    u, delta, A, *rest = (a.astype(np.float32) for a in random_call(np.random.default_rng(7), 2))
    size = np.float32(size)
    (out, last), backward = selective_scan_blocks(u / size, delta * size, A * size**2, *rest, form=form)
    for array in (out, last, *backward((np.ones_like(out), np.ones_like(last)))):
        assert array.dtype == np.float32 and np.isfinite(array).all()


def test_a_decay_that_underflows_costs_no_digits_of_the_others():
    # The short form h = P cumsum(x / P), P = cumprod(decay), divides by 0 here.
    n = 200
    u, delta, A = np.ones((n, 1), np.float32), np.full((n, 1), 2, np.float32), np.array([[-1, -1e-3]], np.float32)
    B = C = np.ones((n, 1, 2), np.float32)
    (out, _), _ = selective_scan_blocks(u, delta, A, B, C, form="associative")
    (exact, _), _ = selective_scan(*(a.astype(np.float64) for a in (u, delta, A, B, C)))
    np.testing.assert_allclose(out, exact, rtol=1e-5)


def kept_and_peak(scan, call, **config):
    tracemalloc.start()
    (out, last), backward = scan(*call, **config)
    kept = tracemalloc.get_traced_memory()[0]
    backward((out, last))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return kept, peak


def test_memory_is_that_of_a_few_inputs_not_of_all_states():
    call = random_call(np.random.default_rng(8), 1, n=2000, d_inner=4, groups=1, d_state=32)
    all_states = 2000 * 4 * 32 * 8
    kept, peak = kept_and_peak(selective_scan_blocks, call, chunk=20)
    assert kept < all_states / 4 and peak < all_states
    assert kept_and_peak(selective_scan, call)[0] > 2 * all_states  # the plain form keeps all states, and all decays


def test_blocks_hold_every_position_once_and_fit_the_cache():
    def lengths(n, lanes, **settings):
        blocks = _blocks(n, lanes, **settings)
        assert [i for part in blocks for i in range(n)[part]] == list(range(n))
        return [part.stop - part.start for part in blocks]

    assert lengths(7, 5, form="sequential", chunk=3) == [3, 3, 1]
    assert lengths(7, 2**17, form="sequential", chunk=3) == [2, 2, 2, 1]
    assert lengths(3, 2**30, form="sequential", chunk=3) == [1, 1, 1]
    assert lengths(7, 2**30, form="associative", chunk=3) == lengths(7, 5, form="chunked", chunk=3) == [7]


def with_blocks_that_are_not_linked(*call):
    """Each block's backward by itself: what reaches its last state from the blocks after it is lost."""
    out, _ = selective_scan_blocks(*call)

    def wrong(dout):
        start, gradients = call[7], []
        for t in range(call[0].shape[1]):
            u, delta, A, B, C, D, z, _ = (a[:, t : t + 1] if i in (0, 1, 3, 4, 6) else a for i, a in enumerate(call))
            (_, start_after), backward = selective_scan_blocks(u, delta, A, B, C, D, z, start)
            gradients.append(backward((dout[0][:, t : t + 1], dout[1] if t == call[0].shape[1] - 1 else None)))
            start = start_after
        joined = [np.concatenate(g, axis=1) if i in (0, 1, 3, 4, 6) else sum(g) for i, g in enumerate(zip(*gradients, strict=True))]
        return (*joined[:7], gradients[0][7])

    return out, wrong


def test_the_check_refuses_blocks_that_do_not_pass_their_gradient_on():
    call = random_call(np.random.default_rng(10), 1, n=3)
    assert check_gradients(selective_scan_blocks, *call).passed
    assert not check_gradients(with_blocks_that_are_not_linked, *call).passed


@pytest.mark.parity
@pytest.mark.parametrize("form", ["sequential", "associative", "chunked"])
def test_parity_with_a_loop_in_torch(form):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    call = random_call(rng, 2, n=13)
    u, delta, A, B, C, D, z, state = theirs = [torch.tensor(a, requires_grad=True) for a in call]
    write, read = (part.repeat_interleave(2, dim=2) for part in (B, C))  # two channels a group
    h, outs = state, []
    for t in range(13):
        h = torch.exp(delta[:, t, :, None] * A) * h + delta[:, t, :, None] * write[:, t] * u[:, t, :, None]
        outs.append(((h * read[:, t]).sum(-1) + D * u[:, t]) * torch.nn.functional.silu(z[:, t]))
    dout, dlast = random_dout(rng, call)
    torch.autograd.backward([torch.stack(outs, 1), h], [torch.tensor(dout), torch.tensor(dlast)])
    expected = {"out": torch.stack(outs, 1).detach().numpy(), "last": h.detach().numpy()}
    expected |= {f"d{name}": a.grad.numpy() for name, a in zip(NAMES, theirs, strict=True)}
    assert_same(everything(selective_scan_blocks, call, (dout, dlast), form=form, chunk=4), expected)
