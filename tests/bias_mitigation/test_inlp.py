"""Rounds of classifiers and projections until a linear one reads nothing; and what another kind reads still."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.bias_mitigation.inlp import fit_linear, inlp


def planted(rng, n=600, d=20, classes=2):
    """Groups of equal size that differ in mean by one vector, among features that go together: one round is not enough."""
    labels = np.arange(n) % classes
    means = 3 * rng.normal(size=(classes, d)) / np.sqrt(d)
    mixing = rng.normal(size=(d, d)) / np.sqrt(d)
    return rng.normal(size=(n, d)) @ mixing + means[labels], labels


X, LABELS = planted(np.random.default_rng(0))
TRAIN, DEV = np.arange(600) < 400, np.arange(600) >= 400


def loss(w, x, targets, l2):
    """Summed cross entropy of a logistic classifier and its penalty, w with the intercept last."""
    total = l2 / 2 * anp.sum(w[:-1] ** 2)
    for row, target in zip(x, targets, strict=True):
        score = anp.sum(row * w[:-1]) + w[-1]
        total = total + anp.log(1 + anp.exp(-score if target else score))
    return total


@pytest.mark.parametrize("l2", [0.01, 3.0])
def test_the_classifier_is_where_the_loss_has_no_slope(l2):
    x, labels = X[:60, :5], LABELS[:60]
    weight, intercept = fit_linear(x, labels, l2=l2)
    w = np.append(weight[:, 0], intercept)
    assert np.abs(autograd.grad(loss)(w, x, labels, l2)).max() < 1e-9  # a sum of sixty terms
    assert all(loss(w + 0.01 * step, x, labels, l2) > loss(w, x, labels, l2) for step in np.random.default_rng(1).normal(size=(5, 6)))


def test_the_intercept_bears_no_penalty():
    x, labels = np.random.default_rng(2).normal(size=(50, 3)), (np.arange(50) < 40).astype(int)
    weight, intercept = fit_linear(x, labels, l2=1e9)
    assert np.abs(weight).max() < 1e-6 and abs(intercept[0] - np.log(4)) < 1e-6


def test_classes_that_can_be_told_apart_without_error_do_not_make_the_weights_diverge():
    x, labels = np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([0, 0, 1, 1])
    assert 1 < fit_linear(x, labels, l2=1e-6)[0][0, 0] < 20
    assert np.isfinite(fit_linear(1e6 * x, labels, l2=1e-6)[0]).all()


def test_a_row_far_out_among_few_of_its_class_does_not_throw_the_steps_off():
    values = [-30.0, 0.0, -3.0, -2.0, -10.0, -29.0, 1.0, 5.0, *(i % 3 - 1.0 for i in range(27))]
    x, labels = np.array(values)[:, None], (np.arange(35) < 2).astype(int)
    weight, intercept = fit_linear(x, labels, l2=0.01)       # full steps end where the matrix has no inverse
    assert np.abs(autograd.grad(loss)(np.append(weight[:, 0], intercept), x, labels, 0.01)).max() < 1e-8


def test_large_features_of_which_a_part_was_taken_out_can_be_fitted():
    q = np.linalg.qr(np.random.default_rng(7).normal(size=(20, 5)))[0]
    left = 1e6 * (X - X @ q @ q.T)                           # to rounding, its second moments have no inverse, and l2 is below that
    weight, intercept = fit_linear(left, LABELS, l2=1e-6)
    assert np.mean((left @ weight[:, 0] + intercept[0] > 0) == LABELS) > 0.9
    assert np.abs((left @ q) @ (q.T @ weight)).max() < 1e-10  # what was taken out has no say in the logits


def test_the_result_is_a_projection_and_its_rank_is_what_was_not_taken_out():
    found = inlp(X, LABELS, rounds=3)
    p, q = found.projection, found.directions
    np.testing.assert_allclose(p @ p, p, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(p, p.T)
    assert np.linalg.matrix_rank(p) == 20 - q.shape[1]
    np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), rtol=0, atol=1e-14)
    assert np.abs(q.T @ p).max() < 1e-14


def test_no_classifier_that_was_fitted_reads_anything_of_what_is_left():
    found = inlp(X, LABELS, rounds=5)
    left = X.copy()
    for column in found.directions.T:                        # the rounds again, one at a time
        weight = fit_linear(left, LABELS, l2=0.01)[0][:, 0]
        assert abs(abs(weight @ column) / np.linalg.norm(weight) - 1) < 1e-10
        assert np.abs(weight @ found.projection).max() < 1e-12 * np.linalg.norm(weight)
        left = left - np.outer(left @ column, column)
    np.testing.assert_allclose(left, X @ found.projection, rtol=0, atol=1e-12)


def test_one_round_is_not_enough_and_the_rounds_end_at_the_largest_class():
    found = inlp(X[TRAIN], LABELS[TRAIN], rounds=20, dev_x=X[DEV], dev_labels=LABELS[DEV], tolerance=0.03)
    assert found.majority == 0.5
    assert found.accuracies[0] > 0.95 and found.accuracies[1] > 0.6
    assert found.accuracies[-1] <= 0.53 and np.all(found.accuracies[:-1] > 0.53)
    assert found.directions.shape[1] == len(found.accuracies) - 1 < 20


def test_accuracies_are_shares_of_right_answers():
    found = inlp(X[TRAIN], LABELS[TRAIN], rounds=1, dev_x=X[DEV], dev_labels=LABELS[DEV])
    weight, intercept = fit_linear(X[TRAIN], LABELS[TRAIN], l2=0.01)
    right = [(float(row @ weight[:, 0] + intercept[0]) > 0) == label for row, label in zip(X[DEV], LABELS[DEV], strict=True)]
    assert found.accuracies[0] == sum(right) / 200 and len(found.accuracies) == 2


def test_fitting_on_what_was_not_projected_finds_the_same_direction_again():
    first = inlp(X, LABELS, rounds=1).directions[:, 0]
    careless = fit_linear(X, LABELS, l2=0.01)[0][:, 0]       # a plausible slip: the second round on x itself
    assert abs(first @ careless) / np.linalg.norm(careless) > 1 - 1e-10
    second = inlp(X, LABELS, rounds=2).directions[:, 1]
    assert abs(first @ second) < 1e-14


def test_of_several_classes_a_round_takes_out_a_direction_for_each():
    x, labels = planted(np.random.default_rng(3), classes=3)
    names = np.array([-4, 7, 100])[labels]
    one, all_rounds = inlp(x, names, rounds=1), inlp(x, names, rounds=6, tolerance=0.05)
    assert one.directions.shape == (20, 3) and one.accuracies[0] > 0.9
    weight = fit_linear(x, names, l2=0.01)[0]
    assert weight.shape == (20, 3) and np.abs(weight.T @ one.projection).max() < 1e-12 * np.abs(weight).max()
    assert all_rounds.accuracies[-1] <= all_rounds.majority + 0.05 < all_rounds.accuracies[0]


def test_names_of_classes_and_leading_axes_do_not_matter():
    found = inlp(X, LABELS, rounds=2)
    other = inlp(X.reshape(6, 100, 20), 5 - LABELS.reshape(6, 100), rounds=2)
    np.testing.assert_allclose(other.projection, found.projection, rtol=0, atol=1e-9)  # two fits, each to 1e-11
    np.testing.assert_array_equal(other.accuracies, found.accuracies)


def test_a_classifier_of_another_kind_reads_the_labels_still():
    rng = np.random.default_rng(4)
    labels = np.arange(600) % 2
    x = rng.normal(size=(600, 4))
    x[:, 0] += 3 * labels
    x[:, 1] *= 1 + 4 * labels                                # the spread tells the group, and no linear classifier sees it
    found = inlp(x, labels, rounds=3, tolerance=0.05)
    assert found.accuracies[-1] <= 0.55
    squares = (x @ found.projection) ** 2
    weight, intercept = fit_linear(squares, labels, l2=0.01)
    assert np.mean((squares @ weight[:, 0] + intercept[0] > 0) == labels) > 0.75


def test_where_nothing_is_above_the_largest_class_nothing_is_taken_out():
    x, labels = np.random.default_rng(5).normal(size=(40, 3)), (np.arange(40) < 36).astype(int)
    found = inlp(x, labels, rounds=3, l2=100.0)
    np.testing.assert_array_equal(found.projection, np.eye(3))
    assert found.accuracies.tolist() == [0.9] and found.directions.shape == (3, 0)


def test_once_no_direction_is_left_it_ends():
    found = inlp(X[:, :2], LABELS, rounds=9)
    assert found.directions.shape[1] <= 2 and len(found.accuracies) <= 3


def test_what_no_classifier_can_be_fitted_on_is_refused():
    with pytest.raises(ValueError, match="labels: got 1 alone, wants at least two classes"):
        inlp(X, np.ones(600, int), rounds=1)
    with pytest.raises(ValueError, match="x: got rows of which a linear classifier reads nothing"):
        inlp(np.ones((6, 2)), np.arange(6) % 2, rounds=1)
    with pytest.raises(ValueError, match=r"dev_labels: got \[2\], wants classes of labels"):
        inlp(X, LABELS, rounds=1, dev_x=X[:2], dev_labels=np.array([0, 2]))
    with pytest.raises(ValueError, match="dev_labels: got None"):
        inlp(X, LABELS, rounds=1, dev_x=X)


@pytest.mark.parity
@pytest.mark.parametrize("classes", [2, 3])
def test_the_classifier_is_scikit_learn_s(classes):
    linear = pytest.importorskip("sklearn.linear_model")
    x, labels = planted(np.random.default_rng(6), n=90, d=4, classes=classes)
    weight, intercept = fit_linear(x, labels, l2=0.5)
    for i, c in enumerate(range(classes) if classes > 2 else [1]):
        theirs = linear.LogisticRegression(C=2.0, solver="newton-cholesky", tol=1e-14, max_iter=1000).fit(x, labels == c)
        np.testing.assert_allclose(weight[:, i], theirs.coef_[0], rtol=0, atol=1e-9)
        assert abs(intercept[i] - theirs.intercept_[0]) < 1e-9
