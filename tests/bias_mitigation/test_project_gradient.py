"""A gradient without its part along another: as one flat vector, by arrays, the identity that it is known for, wrong variants."""

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.basics.linear import Linear
from minitransformers.bias_mitigation.project_gradient import project_gradient, project_gradient_by_array

RNG = np.random.default_rng(0)
TASK, ADVERSARY = ([Linear(RNG.normal(size=(3, 2)), RNG.normal(size=2)), None, RNG.normal(size=4)] for _ in range(2))
STRENGTHS = [0.0, 0.7]


def flat(tree):
    return np.concatenate([leaf.reshape(-1) for _, leaf in trees.leaves(tree)])


def one_by_one(g, a, strength):
    """The formula on two lists of numbers."""
    overlap = sum(x * y for x, y in zip(g, a, strict=True))
    size = sum(y * y for y in a)
    return [x - overlap / size * y - strength * y for x, y in zip(g, a, strict=True)]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_it_is_the_formula_on_all_parameters_as_one_vector(strength):
    found = project_gradient(TASK, ADVERSARY, strength=strength)
    np.testing.assert_allclose(flat(found), one_by_one(flat(TASK), flat(ADVERSARY), strength), rtol=0, atol=1e-14)
    assert [path for path, _ in trees.leaves(found)] == [path for path, _ in trees.leaves(TASK)]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_by_arrays_it_is_the_formula_on_each(strength):
    found = project_gradient_by_array(TASK, ADVERSARY, strength=strength)
    for (_, u), (_, g), (_, a) in zip(*map(trees.leaves, (found, TASK, ADVERSARY)), strict=True):
        np.testing.assert_allclose(u.reshape(-1), one_by_one(g.reshape(-1), a.reshape(-1), strength), rtol=0, atol=1e-14)


@pytest.mark.parametrize("project", [project_gradient, project_gradient_by_array])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_step_down_it_raises_the_adversary_s_loss_by_strength_alone(project, strength):
    """<u, a> = -strength <a, a>: to first order the task's step has no part in what happens to the adversary."""
    u, a = flat(project(TASK, ADVERSARY, strength=strength)), flat(ADVERSARY)
    np.testing.assert_allclose(u @ a, -strength * (a @ a), rtol=0, atol=1e-13)


def test_without_the_projection_the_task_may_help_the_adversary():
    """Where both gradients are the same, g - strength a still goes down on the adversary's loss; projected, it goes up."""
    plain = flat(TASK) - 0.5 * flat(TASK)
    assert plain @ flat(TASK) > 0
    assert flat(project_gradient(TASK, TASK, strength=0.5)) @ flat(TASK) < 0


def test_orthogonal_gradients_leave_each_other_alone():
    g, a = np.array([1.0, 0.0, 2.0]), np.array([0.0, 3.0, 0.0])
    np.testing.assert_array_equal(project_gradient(g, a, strength=0.0), g)


def test_the_length_of_the_adversary_s_gradient_matters_for_its_own_term_only():
    ten = trees.map(lambda leaf: 10 * leaf, ADVERSARY)
    np.testing.assert_allclose(
        flat(project_gradient(TASK, ten, strength=0.0)), flat(project_gradient(TASK, ADVERSARY, strength=0.0)), rtol=0, atol=1e-14
    )
    np.testing.assert_allclose(
        flat(project_gradient(TASK, ten, strength=0.07)), flat(project_gradient(TASK, ADVERSARY, strength=0.7)), rtol=0, atol=1e-14
    )


def test_the_two_forms_differ_and_agree_on_a_single_array():
    apart = flat(project_gradient(TASK, ADVERSARY, strength=0.7)) - flat(project_gradient_by_array(TASK, ADVERSARY, strength=0.7))
    assert np.abs(apart).max() > 0.01
    one, other = TASK[2], ADVERSARY[2]
    np.testing.assert_array_equal(project_gradient(one, other, strength=0.7), project_gradient_by_array(one, other, strength=0.7))


def test_where_the_adversary_has_no_gradient_the_task_s_is_left():
    nothing = trees.zeros_like(ADVERSARY)
    for project in (project_gradient, project_gradient_by_array):
        np.testing.assert_array_equal(flat(project(TASK, nothing, strength=0.7)), flat(TASK))


def test_tiny_gradients_in_float32_are_projected_as_large_ones_are():
    """Their squares are 0 in float32."""
    g, a = np.array([1e-30, 1e-30], np.float32), np.array([1e-30, 0], np.float32)
    found = project_gradient(g, a, strength=0.0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [0, 1e-30], rtol=1e-6, atol=1e-37)


def with_all_rows_multiplied(g, a, strength):
    """The sum over all products of rows in the place of the product of elements: for vectors they are one, for matrices not."""
    unit = a / np.linalg.norm(a)
    return g - np.inner(unit, g).sum() * unit - strength * a


def without_dividing_by_the_length(g, a, strength):
    return g - (g * a).sum() * a - strength * a


@pytest.mark.parametrize("wrong", [with_all_rows_multiplied, without_dividing_by_the_length])
def test_the_identity_tells_a_wrong_projection(wrong):
    g, a = TASK[0].weight, ADVERSARY[0].weight
    assert abs((wrong(g, a, 0.7) * a).sum() + 0.7 * (a * a).sum()) > 0.1


@pytest.mark.parametrize(
    ("task", "adversary", "message"),
    [
        (np.ones(3), np.ones(4), r"adversary: got leaves \[\('', \(4,\)\)\]"),
        (Linear(np.ones((3, 2)), np.ones(2)), Linear(np.ones((3, 2)), None), "adversary: got leaves"),
        (Linear(np.ones((3, 2)), np.array([1, np.nan])), Linear(np.ones((3, 2)), np.ones(2)), "task.bias: got NaN or infinity"),
        (np.ones(3), [1.0, 2.0], "adversary.0: got float, wants an array"),
    ],
    ids=["shape", "structure", "NaN", "no array"],
)
def test_what_does_not_fit_is_refused_by_name(task, adversary, message):
    with pytest.raises(ValueError, match=message):
        project_gradient(task, adversary, strength=1.0)


@pytest.mark.parity
def test_parity_of_the_form_by_arrays_with_aif360_s_lines_in_torch():
    """normalize(x) = x / (|x| + tiny); grad -= sum(grad * unit) * unit; grad -= weight * adversary's, array by array."""
    torch = pytest.importorskip("torch")
    found = project_gradient_by_array(TASK, ADVERSARY, strength=0.7)
    for (_, u), (_, g), (_, a) in zip(*map(trees.leaves, (found, TASK, ADVERSARY)), strict=True):
        grad, adversary = torch.tensor(g), torch.tensor(a)
        unit = adversary / (torch.linalg.vector_norm(adversary) + np.finfo(np.float32).tiny)
        grad = grad - (grad * unit).sum() * unit
        grad = grad - 0.7 * adversary
        np.testing.assert_allclose(u, grad.numpy(), rtol=0, atol=1e-14)
