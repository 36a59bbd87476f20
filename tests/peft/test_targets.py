"""Paths chosen by pattern: which arrays of a model are changed."""

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.models.gpt2 import init_gpt2
from minitransformers.peft.targets import at_targets, targets

BASE = init_gpt2(np.random.default_rng(0), vocabulary=5, context=3, d_model=4, num_layers=2, num_heads=2)


def test_a_pattern_matches_whole_names_from_the_end_of_a_path():
    assert targets(BASE, ["query.weight"]) == ["blocks.0.attention.query.weight", "blocks.1.attention.query.weight"]
    assert targets(BASE, ["1.attention.query.weight"]) == ["blocks.1.attention.query.weight"]
    assert targets(BASE, ["blocks.0.*.weight"]) == [f"blocks.0.{name}.weight" for name in
        ("attention.query", "attention.key", "attention.value", "attention.output", "feed_forward.up", "feed_forward.down")]  # fmt: skip
    with pytest.raises(ValueError, match=r"got 'uery\.weight'"):
        targets(BASE, ["uery.weight"])


def test_paths_come_once_and_in_the_order_of_the_model():
    assert targets(BASE, ["value.weight", "query.weight", "*.query.*"])[:2] == ["blocks.0.attention.query.weight", "blocks.0.attention.value.weight"]
    assert len(targets(BASE, ["value.weight", "query.weight", "*.query.*"])) == 4


def test_arrays_of_another_number_of_axes_are_not_looked_at():
    assert targets(BASE, ["query.*"], ndim=1) == ["blocks.0.attention.query.bias", "blocks.1.attention.query.bias"]


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_that_there_are():
    with pytest.raises(ValueError, match=r"patterns: got 'q_proj', .*blocks\.\*\.attention\.query\.weight, .*blocks\.\*\.feed_forward\.down\.weight"):
        targets(BASE, ["query.weight", "q_proj"])
    for nothing in ([], "query.weight"):
        with pytest.raises(ValueError, match=r"patterns: got .* a list of patterns"):
            targets(BASE, nothing)


def test_the_tree_has_what_was_made_at_the_targets_and_nothing_elsewhere():
    tree = at_targets(lambda leaf: leaf.shape, BASE, ["1.feed_forward.up.weight"])
    assert tree.blocks[1].feed_forward.up.weight == (4, 16)
    assert [path for path, _ in trees.leaves(at_targets(lambda leaf: leaf, BASE, ["key.weight"]))] == targets(BASE, ["key.weight"])
