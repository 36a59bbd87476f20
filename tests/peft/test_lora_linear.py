"""LoRA on one linear map: a change of low rank, trained without the gradient of what is frozen."""

import tracemalloc
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.basics.dropout import dropout
from minitransformers.basics.linear import Linear, linear
from minitransformers.peft.lora_linear import Lora, init_lora, lora_linear, lora_scale, rank_stabilised_scale

RNG = np.random.default_rng(0)
BASE = Linear(RNG.normal(size=(5, 4)), RNG.normal(size=4))
FACTORS = Lora(RNG.normal(size=(5, 2)), RNG.normal(size=(2, 4)))
X, DOUT = RNG.normal(size=(2, 3, 5)), RNG.normal(size=(2, 3, 4))


def textbook(down, up, x, weight, bias, scale, keep):
    """One output at a time: the frozen sum, and the sum over ranks of what each passes on."""
    rows = []
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            seen = [anp.sum(keep[b, t] * x[b, t] * down[:, r]) for r in range(down.shape[1])]
            rows.append(anp.stack([
                anp.sum(x[b, t] * weight[:, j]) + bias[j] + scale * sum(seen[r] * up[r, j] for r in range(len(seen)))
                for j in range(weight.shape[1])
            ]))  # fmt: skip
    return anp.reshape(anp.stack(rows), (*x.shape[:2], -1))


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("scale", [0.3, 2.0])
@pytest.mark.parametrize("bias", [BASE.bias, None])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(rate, scale, bias):
    drop = partial(dropout, rate=rate, rng=np.random.default_rng(5))
    keep = dropout(np.ones_like(X), rate=rate, rng=np.random.default_rng(5))[0]
    out, backward = lora_linear(FACTORS, X, base=Linear(BASE.weight, bias), scale=scale, drop=drop)

    def expected(down, up, x):
        return textbook(down, up, x, BASE.weight, np.zeros(4) if bias is None else bias, scale, keep)

    np.testing.assert_allclose(out, expected(*FACTORS, X), rtol=0, atol=1e-10)
    (ddown, dup), dx = backward(DOUT)
    theirs = autograd.grad(lambda *args: anp.sum(DOUT * expected(*args)), (0, 1, 2))(*FACTORS, X)
    for own, their in zip((ddown, dup, dx), theirs, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_at_the_start_it_is_the_frozen_map_to_the_last_bit(dtype):
    base = Linear(BASE.weight.astype(dtype), BASE.bias.astype(dtype))
    params = init_lora(np.random.default_rng(1), 5, 4, rank=3, dtype=dtype)
    out = lora_linear(params, X.astype(dtype), base=base, scale=lora_scale(16, 3))[0]
    np.testing.assert_array_equal(out, linear(base, X.astype(dtype))[0])
    assert out.dtype == dtype


def test_only_up_moves_at_the_first_step():
    (ddown, dup), _ = lora_linear(init_lora(np.random.default_rng(1), 5, 4, rank=2, dtype=np.float64), X, base=BASE, scale=1.0)[1](DOUT)
    assert not ddown.any() and np.all(dup != 0)


def test_the_start_is_uniform_within_the_root_of_the_width():
    params = init_lora(np.random.default_rng(2), 400, 300, rank=7)
    assert params.down.dtype == params.up.dtype == np.float32 and not params.up.any()
    assert np.abs(params.down).max() <= 1 / 20 and np.abs(params.down).max() > 0.99 / 20
    assert params.down.std() == pytest.approx(1 / 20 / 3**0.5, rel=0.03)


def test_it_holds_rank_times_the_sum_of_both_widths():
    params = init_lora(np.random.default_rng(2), 7, 5, rank=3)
    assert params.down.size + params.up.size == 3 * (7 + 5)


def test_the_change_has_at_most_that_rank():
    change = lora_linear(FACTORS, np.eye(5), base=BASE, scale=0.7)[0] - linear(BASE, np.eye(5))[0]
    assert np.linalg.matrix_rank(change, tol=1e-12) == 2


def test_a_change_of_basis_between_the_factors_changes_nothing():
    turn = np.random.default_rng(3).normal(size=(2, 2))
    turned = Lora(FACTORS.down @ turn, np.linalg.inv(turn) @ FACTORS.up)
    out, backward = lora_linear(FACTORS, X, base=BASE, scale=0.7)
    other, other_backward = lora_linear(turned, X, base=BASE, scale=0.7)
    np.testing.assert_allclose(out, other, rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(DOUT)[1], other_backward(DOUT)[1], rtol=0, atol=1e-12)
    # So moving along such a change leaves the loss alone: down and up see it with opposite signs.
    ddown, dup = backward(DOUT)[0]
    np.testing.assert_allclose(FACTORS.down.T @ ddown, dup @ FACTORS.up.T, rtol=0, atol=1e-12)


def test_two_adapters_are_one_whose_ranks_add():
    more = Lora(*(np.random.default_rng(4).normal(size=shape) for shape in ((5, 1), (1, 4))))
    beside = Lora(np.hstack([FACTORS.down, more.down]), np.vstack([0.7 * FACTORS.up, 0.2 * more.up]))
    changes = [lora_linear(p, X, base=BASE, scale=s)[0] - linear(BASE, X)[0] for p, s in ((FACTORS, 0.7), (more, 0.2), (beside, 1.0))]
    np.testing.assert_allclose(changes[0] + changes[1], changes[2], rtol=0, atol=1e-12)


def test_both_scales_are_alpha_at_rank_one_and_part_as_the_root_of_the_rank():
    assert lora_scale(16, 1) == rank_stabilised_scale(16, 1) == 16
    assert lora_scale(16, 4) == 4 and rank_stabilised_scale(16, 4) == 8


@pytest.mark.parametrize(("scale_of", "growth"), [(lora_scale, 1 / 8), (rank_stabilised_scale, 1.0)])
def test_the_first_step_is_level_in_the_rank_where_the_scale_is_divided_by_its_root(scale_of, growth):
    """A step of plain gradient descent lowers the loss by scale^2 |down^T x^T dout|^2, whose mean grows as the rank."""
    rng, gained = np.random.default_rng(5), {4: [], 32: []}
    base, x, dout = Linear(rng.normal(size=(48, 32)), None), rng.normal(size=(4, 48)), rng.normal(size=(4, 32))
    for rank, gains in gained.items():
        for _ in range(400):
            params, scale = init_lora(rng, 48, 32, rank=rank, dtype=np.float64), scale_of(16, rank)
            out, backward = lora_linear(params, x, base=base, scale=scale)
            stepped = params._replace(up=params.up - 1e-3 * backward(dout)[0].up)
            gains.append(np.sum(dout * (out - lora_linear(stepped, x, base=base, scale=scale)[0])))
    assert np.mean(gained[32]) / np.mean(gained[4]) == pytest.approx(growth, rel=0.1)


def test_no_array_as_large_as_the_weight_is_made():
    rng, wide = np.random.default_rng(6), 600
    base, params = Linear(rng.normal(size=(wide, wide)), None), Lora(rng.normal(size=(wide, 2)), rng.normal(size=(2, wide)))
    x = rng.normal(size=(3, wide))
    tracemalloc.start()
    try:
        out, backward = lora_linear(params, x, base=base, scale=1.0)
        gradients = backward(out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert gradients[0].down.shape == (wide, 2)
    assert peak < base.weight.nbytes / 8


def test_the_frozen_map_is_not_written_to():
    base = Linear(BASE.weight.copy(), BASE.bias.copy())
    for array in base:
        array.flags.writeable = False
    out, backward = lora_linear(FACTORS, X, base=base, scale=0.7)
    assert len(backward(out)) == 2


def test_dropout_touches_only_what_the_thin_matrices_see():
    everything = partial(dropout, rate=0.999999, rng=np.random.default_rng(7))
    out, backward = lora_linear(FACTORS, X, base=BASE, scale=0.7, drop=everything)
    plain, plain_backward = linear(BASE, X)
    np.testing.assert_array_equal(out, plain)
    np.testing.assert_array_equal(backward(DOUT)[1], plain_backward(DOUT)[1])


def test_with_dropout_its_gradients_are_right():
    class Same:
        """A dropout that draws the same mask each time."""

        def __call__(self, x):
            return dropout(x, rate=0.4, rng=np.random.default_rng(8))

    assert check_gradients(lora_linear, FACTORS, X, base=BASE, scale=0.7, drop=Same()).passed


@pytest.mark.parametrize("forgotten", ["the scale", "the way through the thin matrices"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    def wrong(params, x):
        out, backward = lora_linear(params, x, base=BASE, scale=0.7)

        def careless(dout):
            (ddown, dup), dx = backward(dout)
            if forgotten == "the scale":
                return Lora(ddown / 0.7, dup), dx
            return Lora(ddown, dup), dout @ BASE.weight.T

        return out, careless

    assert not check_gradients(wrong, FACTORS, X).passed


@pytest.mark.parametrize("rank", [5, 100])
def test_a_rank_that_no_such_weight_can_have_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank: got {rank}, wants 1 to 4"):
        init_lora(np.random.default_rng(0), 5, 4, rank=rank)
    with pytest.raises(ValueError, match=f"rank: got {rank}, wants 1 to 4"):
        lora_linear(Lora(np.ones((5, rank)), np.ones((rank, 4))), X, base=BASE, scale=1.0)


@pytest.mark.parametrize("alpha", [0, -1, np.inf, np.nan])
def test_an_alpha_that_is_not_above_zero_is_refused(alpha):
    for scale_of in (lora_scale, rank_stabilised_scale):
        with pytest.raises(ValueError, match="alpha: got"):
            scale_of(alpha, 4)


def test_factors_that_do_not_meet_are_refused():
    with pytest.raises(ValueError, match=r"params\.up"):
        lora_linear(Lora(np.ones((5, 2)), np.ones((3, 4))), X, base=BASE, scale=1.0)
    with pytest.raises(ValueError, match=r"base\.weight"):
        lora_linear(FACTORS, X, base=Linear(np.ones((6, 4)), None), scale=1.0)


@pytest.mark.parity
def test_it_is_what_peft_computes():
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    for stabilised, scale in ((False, lora_scale(3, 2)), (True, rank_stabilised_scale(3, 2))):
        settings = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"], use_rslora=stabilised)
        model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(5, 4, dtype=torch.float64)), settings).double()
        layer = model.base_model.model[0]
        with torch.no_grad():
            layer.lora_A.default.weight.copy_(torch.tensor(FACTORS.down.T))
            layer.lora_B.default.weight.copy_(torch.tensor(FACTORS.up.T))
        base = Linear(layer.weight.detach().numpy().T, layer.bias.detach().numpy())
        x = torch.tensor(X, requires_grad=True)
        theirs = model(x)
        theirs.backward(torch.tensor(DOUT))
        out, backward = lora_linear(FACTORS, X, base=base, scale=scale)
        np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
        (ddown, dup), dx = backward(DOUT)
        np.testing.assert_allclose(ddown, layer.lora_A.default.weight.grad.T, rtol=0, atol=1e-9)
        np.testing.assert_allclose(dup, layer.lora_B.default.weight.grad.T, rtol=0, atol=1e-9)
        np.testing.assert_allclose(dx, x.grad, rtol=0, atol=1e-9)
