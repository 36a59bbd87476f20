"""The quadratic form: equal to the recurrence, and multiplication by a semiseparable matrix."""

import numpy as np
import pytest
from naive_ssd import assert_same, everything, naive_ssd, random_case

from minitransformers.attention.masks import causal_mask
from minitransformers.foundation import check_gradients
from minitransformers.state_space.semiseparable import semiseparable
from minitransformers.state_space.ssd_quadratic import ssd_quadratic
from minitransformers.state_space.ssd_recurrent import ssd_recurrent


@pytest.mark.parametrize("n", [1, 2, 11, 140])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_the_recurrence_with_every_gradient(n, groups):
    arguments, dout = random_case(n, 4, groups, batch=(2,))
    assert_same(everything(ssd_quadratic, arguments, dout), everything(ssd_recurrent, arguments, dout), atol=1e-11 if n > 100 else 1e-12)
    arguments = (*arguments[:-1], None)
    assert_same(everything(ssd_quadratic, arguments, dout), everything(ssd_recurrent, arguments, dout), atol=1e-11 if n > 100 else 1e-12)


def test_equals_the_naive_loop():
    arguments, _ = random_case()
    assert_same(ssd_quadratic(*arguments)[0], naive_ssd(*arguments))


def test_each_head_multiplies_by_its_semiseparable_matrix():
    (x, log_decay, B, C, _), _ = random_case()
    y, _ = ssd_quadratic(x, log_decay, B, C)[0]
    for head in range(4):
        M, _ = semiseparable(log_decay[:, head], B[:, head // 2], C[:, head // 2])
        np.testing.assert_allclose(y[:, head], M @ x[:, head], rtol=0, atol=1e-12)


def test_without_decay_it_is_attention_without_a_softmax():
    (x, log_decay, B, C, _), _ = random_case()
    y, _ = ssd_quadratic(x, 0 * log_decay, B, C)[0]
    scores = np.where(causal_mask(11), C[:, 1] @ B[:, 1].T, 0)
    np.testing.assert_allclose(y[:, 3], scores @ x[:, 3], rtol=0, atol=1e-12)


def test_the_future_has_no_part_in_the_past():
    (x, log_decay, B, C, state), (dy, dstate) = random_case()
    dy[6:], dstate[:] = 0, 0
    for gradient in ssd_quadratic(x, log_decay, B, C, state)[1]((dy, dstate))[:-1]:
        assert not gradient[6:].any()                        # exactly zero, not small


def without_the_gradient_of_the_mask(x, log_decay, B, C, state):
    out, backward = ssd_quadratic(x, log_decay, B, C, state)
    return out, lambda dout: (backward(dout)[0], 0 * log_decay, *backward(dout)[2:])


def test_the_checker_refuses_a_mask_taken_for_a_constant():
    report = check_gradients(without_the_gradient_of_the_mask, *random_case(5)[0])
    assert not report.passed and report.worst.path == "log_decay"
