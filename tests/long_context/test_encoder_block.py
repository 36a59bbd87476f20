"""The layer of the chapter's encoders: against a formula without padding, and against PyTorch's."""

import autograd.numpy as anp
import naive_encoder as naive
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.long_context.encoder_block import encoder_block, init_encoder_block


def random_block(seed, d_model=4):
    rng = np.random.default_rng(seed)
    params = init_encoder_block(rng, d_model, num_heads=2, d_hidden=3, dtype=np.float64)
    return trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), params), rng


def test_equals_the_formula_and_its_gradients():
    params, rng = random_block(0)
    x, dout = rng.normal(size=(2, 5, 4))
    out, backward = encoder_block(params, x, num_heads=2)
    np.testing.assert_allclose(out, naive.block(params, x, 2), rtol=0, atol=1e-12)
    dparams, dx = backward(dout)
    dleaves, expected = naive.gradients(lambda params, x: anp.sum(dout * naive.block(params, x, 2)), params, x)
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-11)
    naive.close(dparams, dleaves)


def test_what_stands_at_padding_is_read_by_nobody():
    params, rng = random_block(1)
    x, mask = rng.normal(size=(3, 5, 4)), np.array([[1, 1, 0, 1, 1], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    out, backward = encoder_block(params, x, num_heads=2, mask=mask)
    for text in range(3):
        np.testing.assert_allclose(out[text][mask[text]], naive.block(params, x[text][mask[text]], 2), rtol=0, atol=1e-12)
    dx = backward(rng.normal(size=x.shape) * mask[..., None])[1]
    np.testing.assert_array_equal(dx[~mask], 0)


def test_the_gradient_is_right_where_nothing_is_real_at_all():
    params, rng = random_block(2)
    mask = np.array([[0, 0, 0], [1, 0, 1]], bool)
    assert check_gradients(encoder_block, params, rng.normal(size=(2, 3, 4)), num_heads=2, mask=mask).passed


def test_the_check_refuses_a_backward_without_a_residual():
    def wrong(params, x):
        out, backward = encoder_block(params, x, num_heads=2)
        return out, lambda dout: (backward(dout)[0], backward(dout)[1] - dout)

    params, rng = random_block(3)
    assert not check_gradients(wrong, params, rng.normal(size=(3, 4))).passed


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    params, rng = random_block(4)
    x, dout = rng.normal(size=(2, 2, 5, 4))
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], bool)
    out, backward = encoder_block(params, x, num_heads=2, mask=mask)
    theirs_x = torch.tensor(x, requires_grad=True)
    theirs = naive.torch_layer(params, 2)(theirs_x, src_key_padding_mask=torch.tensor(~mask))
    theirs.backward(torch.tensor(dout))
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(dout)[1], theirs_x.grad.numpy(), rtol=0, atol=1e-11)
