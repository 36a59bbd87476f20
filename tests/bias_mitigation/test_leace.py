"""The least change that leaves no covariance with the labels: by another algebra, by its properties, and by the authors' code."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
import scipy.linalg

from minitransformers import check_gradients
from minitransformers.bias_mitigation.inlp import fit_linear, inlp
from minitransformers.bias_mitigation.leace import LeaceEraser, erase, leace


def planted(rng, n=600, d=20, classes=2):
    labels = rng.permutation(np.arange(n) % classes)
    means = 2 * rng.normal(size=(classes, d)) / np.sqrt(d)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d) + means[labels] + 5, labels


X, LABELS = planted(np.random.default_rng(0))
Z = np.eye(2)[LABELS]


def erased(x, z):
    return erase(x, eraser=leace(x, z))[0]


def covariance(x, z):
    """One product of numbers at a time."""
    n, (x_mean, z_mean) = len(x), (sum(x) / len(x), sum(z) / len(z))
    return np.array([[sum((x[:, i] - x_mean[i]) * (z[:, j] - z_mean[j])) / (n - 1) for j in range(z.shape[1])] for i in range(x.shape[1])])


def textbook(x, z):
    """The theorem in columns, with a root of the matrix and pseudo-inverses: P = 1 - W^+ (W Sxz)(W Sxz)^+ W."""
    root = scipy.linalg.sqrtm(covariance(x, x)).real
    w = np.linalg.pinv(root)
    whitened = w @ covariance(x, z)
    p = np.eye(x.shape[1]) - root @ whitened @ np.linalg.pinv(whitened, rcond=1e-10) @ w
    return np.array([x.mean(axis=0) + p @ (row - x.mean(axis=0)) for row in x])


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_it_is_the_theorem_row_by_row(classes):
    x, labels = planted(np.random.default_rng(1), n=60, d=5, classes=classes)
    z = np.eye(classes)[labels]
    np.testing.assert_allclose(erased(x, z), textbook(x, z), rtol=0, atol=1e-10)


def test_the_gradient_is_autograd_s():
    x, dout, eraser = X[:6].reshape(2, 3, 20), np.random.default_rng(2).normal(size=(2, 3, 20)), leace(X, Z)
    p = np.eye(20) - eraser.write @ eraser.read.T

    def textbook(x):
        return eraser.mean + anp.einsum("ij,btj->bti", p, x - eraser.mean)

    out, backward = erase(x, eraser=eraser)
    np.testing.assert_allclose(out, textbook(x), rtol=0, atol=1e-10)
    np.testing.assert_allclose(backward(dout), autograd.grad(lambda x: anp.sum(dout * textbook(x)))(x), rtol=0, atol=1e-10)


def as_if_it_were_orthogonal(x, *, eraser):
    out, _ = erase(x, eraser=eraser)
    return out, lambda dout: dout - (dout @ eraser.read) @ eraser.write.T


def test_the_check_refuses_a_backward_in_which_read_and_write_keep_their_places():
    assert not check_gradients(as_if_it_were_orthogonal, X[:3], eraser=leace(X, Z)).passed
    isotropic = LeaceEraser(np.zeros(5), *np.linalg.qr(np.random.default_rng(3).normal(size=(5, 1)))[:1] * 2)
    assert check_gradients(as_if_it_were_orthogonal, X[:3, :5], eraser=isotropic).passed  # there it is right


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_no_covariance_is_left_and_one_direction_fewer_than_classes_is_taken_out(classes):
    x, labels = planted(np.random.default_rng(4), classes=classes)
    z = np.eye(classes)[labels]
    assert np.abs(covariance(x, z)).max() > 0.1 > 1e-14 > np.abs(covariance(erased(x, z), z)).max()
    eraser = leace(x, z)
    assert eraser.read.shape == eraser.write.shape == (20, classes - 1)
    np.testing.assert_allclose(eraser.read.T @ eraser.write, np.eye(classes - 1), rtol=0, atol=1e-12)


def test_the_mean_stays_and_erasing_twice_is_erasing_once():
    once, eraser = erased(X, Z), leace(X, Z)
    np.testing.assert_allclose(once.mean(axis=0), X.mean(axis=0), rtol=0, atol=1e-13)
    np.testing.assert_allclose(erase(once, eraser=eraser)[0], once, rtol=0, atol=1e-12)


def test_of_what_is_erased_there_is_nothing_to_erase():
    again = leace(erased(X, Z), Z)
    assert not again.read.any() and not again.write.any() and again.read.shape == (20, 1)
    np.testing.assert_array_equal(erase(X, eraser=again)[0], X)


def test_a_linear_classifier_has_no_weights_and_names_the_largest_class():
    labels = (np.arange(600) < 340).astype(int)
    x = X + np.outer(labels, np.random.default_rng(5).normal(size=20))
    left = erased(x, np.eye(2)[labels])
    before, (weight, intercept) = fit_linear(x, labels, l2=1e-3)[0], fit_linear(left, labels, l2=1e-3)
    assert np.abs(before).max() > 0.5 and np.abs(weight).max() < 1e-10
    assert np.all(left @ weight + intercept > 0) and abs(intercept[0] - np.log(340 / 260)) < 1e-9


def orthogonal(x, labels):
    """The difference of means, projected out."""
    g = x[labels == 1].mean(axis=0) - x[labels == 0].mean(axis=0)
    g /= np.linalg.norm(g)
    return x - np.outer((x - x.mean(axis=0)) @ g, g)


def change(x, other):
    return np.mean(np.sum((x - other) ** 2, axis=1))


def test_it_moves_less_than_taking_out_the_difference_of_means_and_than_rounds_of_classifiers():
    ours, theirs = erased(X, Z), orthogonal(X, LABELS)
    assert np.abs(covariance(theirs, Z)).max() < 1e-14       # that erases as well
    assert change(X, ours) < change(X, theirs)
    rounds = inlp(X, LABELS, rounds=20, tolerance=0.02).projection
    centred = X - X.mean(axis=0)
    assert change(X, ours) < change(centred, centred @ rounds)


def test_no_other_affine_map_that_erases_moves_less():
    rng, eraser = np.random.default_rng(6), leace(X, Z)
    p, shared = np.eye(20) - eraser.write @ eraser.read.T, covariance(X, Z)
    free = np.eye(20) - shared @ np.linalg.pinv(shared)      # what may be added: it sees nothing of the covariance
    centred, least = X - X.mean(axis=0), change(X, erased(X, Z))
    for much in (1e-3, 0.1, 1.0):
        for _ in range(5):
            other = p + much * rng.normal(size=(20, 20)) @ free
            assert np.abs(covariance(centred @ other.T, Z)).max() < 1e-12 and change(centred, centred @ other.T) > least


def test_the_units_and_the_mixture_of_features_do_not_matter():
    a = np.random.default_rng(7).normal(size=(20, 20))
    np.testing.assert_allclose(erased(X @ a, Z), erased(X, Z) @ a, rtol=0, atol=1e-9)  # a is ill-conditioned a little


def test_labels_may_be_numbers_and_leave_no_covariance_either():
    z = np.stack([X[:, 0] ** 2, np.sin(X[:, 1])], axis=1)
    assert np.abs(covariance(erased(X, z), z)).max() < 1e-13
    np.testing.assert_allclose(erased(X, 1e-13 * z), erased(X, z), rtol=0, atol=1e-9)  # their unit does not matter


def test_one_column_of_two_classes_is_enough():
    np.testing.assert_allclose(erased(X, Z[:, :1]), erased(X, Z), rtol=0, atol=1e-12)


def test_features_that_depend_on_each_other_and_more_features_than_rows():
    wide = np.concatenate([X[:, :4], X[:, :4] @ np.ones((4, 3)), np.ones((600, 1))], axis=1)
    for x, z in ((wide, Z), (X[:12], Z[:12])):
        left = erased(x, z)
        assert np.isfinite(left).all() and np.abs(covariance(left, z)).max() < 1e-13
    np.testing.assert_array_equal(erased(wide, Z)[:, -1], 1.0)  # what does not vary stays


def test_leading_axes_are_samples():
    one, other = leace(X, Z), leace(X.reshape(6, 100, 20), Z.reshape(6, 100, 2))
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_classifier_of_another_kind_reads_the_labels_still():
    rng, labels = np.random.default_rng(8), np.arange(600) % 2
    x = rng.normal(size=(600, 3)) * np.stack([1 + 4 * labels, np.ones(600), np.ones(600)], axis=1) + 2 * labels[:, None]
    squares = (erased(x, np.eye(2)[labels]) - x.mean(axis=0)) ** 2
    weight, intercept = fit_linear(squares, labels, l2=0.01)
    assert np.mean((squares @ weight[:, 0] + intercept[0] > 0) == labels) > 0.75


def test_on_other_rows_the_covariance_is_small_and_not_zero():
    x, z, eraser = X[300:], Z[300:], leace(X[:300], Z[:300])
    left = np.abs(covariance(erase(x, eraser=eraser)[0], z)).max()
    assert 1e-6 < left < 0.5 * np.abs(covariance(x, z)).max()


def test_float32_rows_give_an_eraser_in_float32_that_is_fitted_in_double():
    eraser = leace(X.astype(np.float32), Z.astype(np.float32))
    assert all(part.dtype == np.float32 for part in eraser)
    np.testing.assert_allclose(erase(X.astype(np.float32), eraser=eraser)[0], erased(X, Z), rtol=0, atol=1e-4)  # float32


def test_what_does_not_vary_is_refused():
    with pytest.raises(ValueError, match="z: got the same in all rows"):
        leace(X, np.ones((600, 2)))
    with pytest.raises(ValueError, match="x: got the same in all rows"):
        leace(np.ones((600, 3)), Z)
    with pytest.raises(ValueError, match="x: got one row"):
        leace(X[:1], Z[:1])


@pytest.mark.parity
@pytest.mark.parametrize("classes", [2, 4])
def test_it_erases_what_the_authors_code_does_with_its_approximations_off(classes):
    torch = pytest.importorskip("torch")
    fitter = pytest.importorskip("concept_erasure").LeaceFitter
    x, labels = planted(np.random.default_rng(9), classes=classes)
    z = np.eye(classes)[labels]
    exact = {"shrinkage": False, "constrain_cov_trace": False, "svd_tol": 1e-12}
    theirs = fitter.fit(torch.tensor(x), torch.tensor(z), **exact).eraser(torch.tensor(x)).numpy()
    np.testing.assert_allclose(erased(x, z), theirs, rtol=0, atol=1e-10)
    approximate = fitter.fit(torch.tensor(x), torch.tensor(1e-3 * z)).eraser(torch.tensor(x)).numpy()
    np.testing.assert_allclose(approximate, x, rtol=0, atol=1e-12)  # by default a singular value below 0.01, in the units of z, is none
    np.testing.assert_allclose(erased(x, 1e-3 * z), theirs, rtol=0, atol=1e-10)
