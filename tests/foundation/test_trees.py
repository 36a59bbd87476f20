"""Trees: structure is kept, paths are what one would type, and what does not fit is named."""

from typing import NamedTuple

import numpy as np
import pytest

from minitransformers import trees


class Pair(NamedTuple):
    weight: object
    bias: object


TREE = Pair(weight=[np.ones((2, 3)), (np.zeros(4), None)], bias=None)


def test_paths_are_what_one_would_type():
    nested = Pair([TREE, TREE], np.ones(1))
    assert [path for path, _ in trees.leaves(nested)] == ["weight.0.weight.0", "weight.0.weight.1.0", "weight.1.weight.0", "weight.1.weight.1.0", "bias"]
    assert [path for path, _ in trees.leaves(np.ones(2), "x")] == ["x"]


def test_map_keeps_the_structure():
    doubled = trees.map(lambda leaf: 2 * leaf, TREE)
    assert isinstance(doubled, Pair) and isinstance(doubled.weight, list) and isinstance(doubled.weight[1], tuple)
    assert doubled.bias is None and doubled.weight[1][1] is None
    np.testing.assert_array_equal(doubled.weight[0], 2 * np.ones((2, 3)))


def test_map_over_two_trees_goes_leaf_by_leaf():
    total = trees.map(np.add, TREE, trees.map(lambda leaf: leaf + 1, TREE))
    np.testing.assert_array_equal(total.weight[0], 3 * np.ones((2, 3)))


@pytest.mark.parametrize("other", [Pair([np.ones(2)], None), Pair(np.ones(2), None), Pair(TREE.weight, np.ones(1)), None, TREE.weight])
def test_trees_of_other_structure_are_refused(other):
    with pytest.raises(ValueError, match="differ in structure"):
        trees.map(np.add, TREE, other)


def test_a_shared_array_counts_once():
    shared = np.ones((3, 4))
    assert trees.count_parameters([shared, shared, np.ones(5)]) == 17
    assert trees.count_parameters(None) == 0


def test_cast_and_zeros_keep_shapes_and_never_share_memory():
    single = trees.cast(TREE, np.float32)
    assert {leaf.dtype for _, leaf in trees.leaves(single)} == {np.dtype(np.float32)}
    same = trees.cast(TREE, np.float64)
    same.weight[0][:] = 7
    assert TREE.weight[0].max() == 1
    zeros = trees.zeros_like(single)
    assert zeros.weight[0].dtype == np.float32 and not zeros.weight[0].any()


def test_paths_and_back():
    values = {path: leaf + 5 for path, leaf in trees.leaves(TREE)}
    again = trees.from_paths(TREE, values)
    np.testing.assert_array_equal(again.weight[1][0], 5 * np.ones(4))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("weight.0"), "missing: weight.0"),
        (lambda d: d.update(extra=np.ones(1)), "unexpected: extra"),
        (lambda d: d.update({"weight.0": np.ones((3, 2))}), r"wrong shape: weight.0 is \(3, 2\), should be \(2, 3\)"),
    ],
)
def test_missing_extra_and_mis_shaped_names_are_listed(change, says):
    values = dict(trees.leaves(TREE))
    change(values)
    with pytest.raises(ValueError, match=says):
        trees.from_paths(TREE, values)
