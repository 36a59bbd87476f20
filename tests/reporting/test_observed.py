"""Calibration: what each matrix is multiplied with, seen from the slots of a Llama, is what its linear maps are called with."""

import numpy as np

from minitransformers import trees
from minitransformers.attention import grouped_query_attention as attention_module
from minitransformers.basics import gated_feed_forward as network_module
from minitransformers.basics.linear import linear
from minitransformers.models.llama import init_llama
from minitransformers.reporting.observed import observed

SIZES = {"vocabulary": 7, "d_model": 8, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_hidden": 5, "std": 0.5, "dtype": np.float64}


def test_each_matrix_is_seen_with_the_rows_that_its_linear_map_is_called_with(monkeypatch):
    params = init_llama(np.random.default_rng(0), **SIZES)
    batches = [np.array([[1, 4, 0], [2, 2, 3]]), np.array([[5, 6]])]
    rows = {}

    def spying(part, x):
        rows.setdefault(id(part.weight), []).append(x.reshape(-1, x.shape[-1]))
        return linear(part, x)

    monkeypatch.setattr(attention_module, "linear", spying)
    monkeypatch.setattr(network_module, "linear", spying)
    found = observed(params, batches, num_heads=4)
    matrices = {path: leaf for path, leaf in trees.leaves(params) if path.startswith("blocks") and leaf.ndim == 2}
    assert set(found) == set(matrices) and len(found) == 14
    for path, leaf in matrices.items():
        x = np.concatenate(rows[id(leaf)])
        assert found[path].rows == len(x) == 8
        np.testing.assert_allclose(found[path].gram, x.T @ x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[path].mean_magnitudes, np.abs(x).mean(axis=0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[path].norms, np.linalg.norm(x, axis=0), rtol=0, atol=1e-12)
