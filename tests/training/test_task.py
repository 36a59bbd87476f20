"""Tasks: a loss is a sum and a count, so parts of a batch count for what is in them."""

from functools import partial

import numpy as np
import pytest
from small_run import Small, SmallConfig, corpus, init_small, language_task, small

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.basics.linear import init_linear, linear
from minitransformers.foundation import trees
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.task import IGNORED, FromLoss, Labelled, Task, accuracy, labelled_loss, on_arrays, on_ids
from minitransformers.training.update import Learner, accumulate_gradient

IDS = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
UNEQUAL = np.array([[1, IGNORED, IGNORED, IGNORED], [2, 1, 0, 4]])


def start(dtype=np.float64):
    params = init_small(np.random.default_rng(0), SmallConfig(5, context=4), dtype=dtype)
    return trees.map(lambda leaf: leaf + np.random.default_rng(1).normal(size=leaf.shape).astype(dtype), params)


def labelled(**settings):
    return Labelled(on_ids(partial(small, config=SmallConfig(5, context=4, dropout=0.3))), lambda rng: (IDS, UNEQUAL), **settings)


def accumulated(task, batch, params, **settings):
    packed = FlatTree.pack(params)
    gradient = packed.zeros_like()
    gradient.flat[:] = np.nan                                # what was there before must not matter
    total, count = accumulate_gradient(task, packed.tree, gradient, batch, rng=np.random.default_rng(0), **settings)
    return total, count, gradient.tree


def assert_alike(found, expected, atol=1e-12):
    for (path, own), (_, theirs) in zip(trees.leaves(found), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=atol, err_msg=path)


@pytest.mark.parametrize("micro_batches", [2, 3, 6])
def test_micro_batches_equal_one_batch(micro_batches):
    task = language_task()
    params = init_small(np.random.default_rng(0), SmallConfig(corpus().vocabulary.size), dtype=np.float64)
    batch = task.batch(np.random.default_rng(1))
    whole, parts = (accumulated(task, batch, params, micro_batches=k) for k in (1, micro_batches))
    assert parts[0] == pytest.approx(whole[0], abs=1e-10) and parts[1] == whole[1] == 36
    assert_alike(parts[2], whole[2])


def test_parts_with_unequal_labels_count_for_what_is_in_them():
    """A mean of the means of the parts would be another loss: of five labels, one part has a single one."""
    logits, backward = small(start(), ids=IDS, config=SmallConfig(5, context=4))
    loss, loss_backward = cross_entropy(logits, targets=UNEQUAL)
    expected = backward(loss_backward(np.float64(1)))
    means = [float(cross_entropy(small(start(), ids=IDS[i : i + 1], config=SmallConfig(5))[0], targets=UNEQUAL[i : i + 1])[0]) for i in (0, 1)]
    assert abs(np.mean(means) - float(loss)) > 1e-2
    for micro_batches in (1, 2):
        total, count, gradient = accumulated(labelled(), (IDS, UNEQUAL), start(), micro_batches=micro_batches)
        assert (total / count, count) == (pytest.approx(float(loss), abs=1e-12), 5)
        assert_alike(trees.map(lambda leaf, count=count: leaf / count, gradient), expected)


def test_an_update_from_unequal_parts_is_the_update_from_the_whole():
    results = []
    for micro_batches in (1, 2):
        learner = Learner(start())
        found = learner.update(
            labelled(), batch=(IDS, UNEQUAL), rng=np.random.default_rng(0), learning_rate=0.1, clip=0.5, micro_batches=micro_batches
        )
        results.append((*found, learner.params.tree))
    assert results[0][:3] == pytest.approx(results[1][:3], abs=1e-12)
    assert_alike(results[0][3], results[1][3])


@pytest.mark.parametrize("empty", [0, 1])
def test_a_part_without_a_label_counts_for_nothing(empty):
    targets = UNEQUAL.copy()
    targets[empty] = IGNORED
    rest = slice(1 - empty, 2 - empty)
    one = accumulated(labelled(), (IDS[rest], targets[rest]), start())
    both = accumulated(labelled(), (IDS, targets), start(), micro_batches=2)
    assert both[:2] == (pytest.approx(one[0], abs=1e-12), one[1])
    assert_alike(both[2], one[2])


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_batch_without_a_label_is_refused_by_name_and_nothing_changes(micro_batches):
    learner = Learner(start())
    before = learner.params.flat.copy()
    with pytest.raises(ValueError, match="batch: got nothing that counts, wants at least one label"):
        learner.update(
            labelled(), batch=(IDS, np.full((2, 4), IGNORED)), rng=np.random.default_rng(0), learning_rate=0.1, clip=1.0, micro_batches=micro_batches
        )
    np.testing.assert_array_equal(learner.params.flat, before)
    assert learner.optimizer.steps == 0


def test_an_evaluation_in_batches_weighs_each_by_its_labels():
    """The windows do not fill the last batch, and the last window is shorter: the mean is over tokens all the same."""
    params = init_small(np.random.default_rng(2), SmallConfig(corpus().vocabulary.size), dtype=np.float64)
    numbers = [language_task(batch_size=size).evaluate(params)["bits per character"] for size in (1, 4, 7, 1000)]
    np.testing.assert_allclose(numbers, numbers[0], rtol=1e-12)


def test_the_loss_and_its_gradients_are_the_models_on_the_batch_that_was_drawn():
    rng = np.random.default_rng(1)
    params, ids, targets = init_embedding(rng, 5, 5, dtype=np.float64), rng.integers(5, size=(2, 3)), np.array([[0, -100, 4], [1, 1, -100]])
    task = Labelled(on_ids(embedding), lambda rng: (ids, targets))
    assert task.batch(rng) == (ids, targets)
    (total, count), backward = task.loss(params, task.batch(rng), rng=rng)
    logits, model_backward = embedding(params, ids=ids)
    expected, loss_backward = cross_entropy(logits, targets=targets)
    assert count == 4 and total / count == pytest.approx(float(expected), abs=1e-14)
    dmean = backward((np.float64(1 / 4), None))
    np.testing.assert_allclose(dmean.weight, model_backward(loss_backward(np.float64(1))).weight, rtol=0, atol=1e-15)


def test_a_model_that_is_random_gets_a_generator_when_it_trains_and_only_then():
    given = []

    def watching(*args, rng=None, **settings):
        given.append(rng)
        return small(*args, **settings)

    rng = np.random.default_rng(0)
    for random, expected in ((False, None), (True, rng)):
        task = Labelled(on_ids(partial(watching, config=SmallConfig(5))), lambda rng: (IDS, UNEQUAL), random=random)
        task.loss(start(), (IDS, UNEQUAL), rng=rng)
        assert given.pop() is expected


def test_a_concept_of_arrays_leaves_the_gradient_of_its_inputs_out():
    rng = np.random.default_rng(4)
    params, x, targets = init_linear(rng, 3, 4, dtype=np.float64), rng.normal(size=(5, 3)), rng.integers(4, size=5)
    task = Labelled(on_arrays(linear), lambda rng: (x, targets))
    (total, count), backward = task.loss(params, (x, targets), rng=rng)
    logits, linear_backward = linear(params, x)
    _, loss_backward = cross_entropy(logits, targets=targets, reduction="sum")
    trees.map(np.testing.assert_array_equal, backward((np.float64(1), None)), linear_backward(loss_backward(np.float64(1)))[0])
    assert count == 5 and total == cross_entropy(logits, targets=targets, reduction="sum")[0]


def test_a_function_of_the_parameters_is_a_task_too():
    task = FromLoss(lambda params: (float(0.5 * params[0] @ params[0]), [params[0].copy()]))
    assert task.batch(np.random.default_rng(0)) is None
    (value, count), backward = task.loss([np.array([3.0, 4.0])], None, rng=np.random.default_rng(0))
    assert (value, count) == (12.5, 1)
    np.testing.assert_array_equal(backward((1.0, None))[0], [3.0, 4.0])
    assert (task.evaluate([]), task.to_json(), task.defaults()) == ({}, {}, {})


def test_a_task_must_have_a_loss():
    with pytest.raises(NotImplementedError):
        Task().loss(None, None, rng=np.random.default_rng(0))


def test_gradients_have_the_type_of_the_parameters():
    task = labelled()
    total, count, gradient = accumulated(task, (IDS, UNEQUAL), start(np.float32))
    (loss, _), backward = task.loss(start(np.float32), (IDS, UNEQUAL), rng=np.random.default_rng(0))
    assert loss.dtype == np.float32 and isinstance(backward((loss, None)), Small)
    assert {leaf.dtype for _, leaf in trees.leaves((gradient, backward((loss, None))))} == {np.dtype(np.float32)}
    assert type(total) is float and type(count) is int


def test_labels_that_are_ignored_are_not_counted():
    logits = np.random.default_rng(3).normal(size=(2, 4, 5))
    (total, count), _ = labelled_loss(logits, lambda dlogits: dlogits, UNEQUAL)
    assert count == 5 and total == pytest.approx(5 * float(cross_entropy(logits, targets=UNEQUAL)[0]))


def test_accuracy_counts_labelled_positions_only():
    logits = np.eye(4)[[[0, 1, 2], [3, 3, 3]]]
    assert accuracy(logits, np.array([[0, -100, 1], [-100, 3, -100]])) == 2 / 3
    assert accuracy(logits, np.array([[0, 9, 9], [9, 3, 9]]), ignore_index=9) == 1.0
    with pytest.raises(ValueError, match="targets: got"):
        accuracy(logits, np.full((2, 3), -100))
