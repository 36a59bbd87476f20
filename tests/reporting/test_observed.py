"""Calibration: what each matrix is multiplied with, seen from the slots of a Llama, is what its linear maps are called with."""

import numpy as np

from minitransformers import trees
from minitransformers.attention import grouped_query_attention as attention_module
from minitransformers.basics import gated_feed_forward as network_module
from minitransformers.basics.linear import linear
from minitransformers.models.llama import init_llama, llama
from minitransformers.reporting.observed import Inputs, observed, slots_that_show

SIZES = {"vocabulary": 7, "d_model": 8, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_hidden": 5, "std": 0.5, "dtype": np.float64}
BATCHES = [np.array([[1, 4, 0], [2, 2, 3]]), np.array([[5, 6]])]


def test_each_matrix_is_seen_with_the_rows_that_its_linear_map_is_called_with(monkeypatch):
    params = init_llama(np.random.default_rng(0), **SIZES)
    found, rows = observed(params, BATCHES, num_heads=4), {}

    def spying(part, x):
        rows.setdefault(id(part.weight), []).append(x.reshape(-1, x.shape[-1]))
        return linear(part, x)

    monkeypatch.setattr(attention_module, "linear", spying)
    monkeypatch.setattr(network_module, "linear", spying)
    for ids in BATCHES:
        llama(params, ids=ids, num_heads=4)
    matrices = {path: leaf for path, leaf in trees.leaves(params) if path.startswith("blocks") and leaf.ndim == 2}
    assert set(found) == set(matrices) and len(found) == 14
    for path, leaf in matrices.items():
        x = np.concatenate(rows[id(leaf)])
        assert found[path].rows == len(x) == 8
        np.testing.assert_allclose(found[path].gram, x.T @ x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[path].mean_magnitudes, np.abs(x).mean(axis=0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[path].norms, np.linalg.norm(x, axis=0), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(found[path].largest, np.abs(x).max(axis=0))


def test_who_only_looks_on_changes_nothing_and_who_doubles_what_a_matrix_reads_doubles_its_weight():
    params = init_llama(np.random.default_rng(1), **SIZES)
    plain, _ = llama(params, ids=BATCHES[0], num_heads=4)
    np.testing.assert_array_equal(llama(params, ids=BATCHES[0], num_heads=4, **slots_that_show(lambda paths, x: x))[0], plain)
    for part in ("attention.query", "attention.output", "feed_forward.up", "feed_forward.down"):
        shown, _ = llama(params, ids=BATCHES[0], num_heads=4, **slots_that_show(lambda paths, x, part=part: 2 * x if f"blocks.1.{part}.weight" in paths else x))
        reads = {"attention.query": ("attention.query", "attention.key", "attention.value"), "feed_forward.up": ("feed_forward.gate", "feed_forward.up")}.get(part, (part,))
        doubled = trees.unflatten(params, [2 * leaf if path in {f"blocks.1.{one}.weight" for one in reads} else leaf for path, leaf in trees.leaves(params)])
        np.testing.assert_allclose(shown, llama(doubled, ids=BATCHES[0], num_heads=4)[0], rtol=0, atol=1e-12)
        assert np.abs(shown - plain).max() > 1e-3


def test_the_root_has_the_same_products_as_the_inputs():
    x = np.random.default_rng(2).normal(size=(9, 5))
    root = Inputs(x.T @ x, np.abs(x).sum(axis=0), np.abs(x).max(axis=0), len(x)).root
    assert root.shape == (5, 5)
    np.testing.assert_allclose(root.T @ root, x.T @ x, rtol=0, atol=1e-12)
