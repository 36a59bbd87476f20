from typing import Annotated, Any, NamedTuple

import numpy as np
import pytest

from minitransformers.foundation import trees
from minitransformers.foundation.trees import decays
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.optimizer import AdamW, TrainingDiverged, gradient_norm


class Layer(NamedTuple):
    weight: Annotated[Any, decays]
    bias: Any


class Model(NamedTuple):
    embedding: Any
    layers: list[Layer]
    head: Annotated[Any, decays]


DECAYED = {"layers.0.weight", "layers.1.weight", "head"}


def random_model(rng, dtype=np.float64, *, tied=False):
    def array(*shape):
        return rng.normal(size=shape).astype(dtype)

    embedding = array(7, 3)
    return Model(embedding, [Layer(array(3, 5), array(5)), Layer(array(5, 3), None)], embedding if tied else array(3, 7))


def textbook_adamw(params, gradients, *, learning_rate, betas, eps, weight_decay, clip=None):
    """Algorithm 2 of the paper as PyTorch orders it, one array at a time, with the papers' own moments."""
    params = {path: leaf.copy() for path, leaf in trees.leaves(params)}
    decay = {path: weight_decay * (path in DECAYED) for path in params}
    first, second = ({path: np.zeros_like(leaf) for path, leaf in params.items()} for _ in range(2))
    for t, gradient in enumerate(gradients, start=1):
        gradient = dict(trees.leaves(gradient))
        norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
        factor = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        for path in params:
            g = factor * gradient[path]
            params[path] = params[path] * (1 - learning_rate * decay[path])
            first[path] = betas[0] * first[path] + (1 - betas[0]) * g
            second[path] = betas[1] * second[path] + (1 - betas[1]) * g**2
            mean, mean_square = first[path] / (1 - betas[0] ** t), second[path] / (1 - betas[1] ** t)
            params[path] = params[path] - learning_rate * mean / (np.sqrt(mean_square) + eps)
    return params


@pytest.mark.parametrize("clip", [None, 0.7])
def test_equals_the_textbook_form(clip):
    rng = np.random.default_rng(0)
    start, settings = random_model(rng), {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}
    gradients = [random_model(rng) for _ in range(20)]
    params = FlatTree.pack(start, in_front=DECAYED)
    optimizer, gradient = AdamW(params, **settings), params.zeros_like()
    for tree in gradients:
        gradient.set_sum(tree)
        optimizer.step(gradient, learning_rate=0.05, clip=clip)
    wanted = textbook_adamw(start, gradients, learning_rate=0.05, clip=clip, **settings)
    for path, leaf in trees.leaves(params.tree):
        np.testing.assert_allclose(leaf, wanted[path], rtol=0, atol=1e-14, err_msg=path)


@pytest.mark.parity
@pytest.mark.parametrize("foreach", [False, True])
def test_equals_torch_with_clipping_and_two_groups(foreach):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    start = random_model(rng)
    theirs = {path: torch.nn.Parameter(torch.tensor(leaf)) for path, leaf in trees.leaves(start)}
    decayed = list(trees.decayed(start))
    reference = torch.optim.AdamW(
        [
            {"params": [theirs[path] for path in decayed], "weight_decay": 0.1},
            {"params": [p for path, p in theirs.items() if path not in decayed], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.99), eps=1e-8, foreach=foreach,
    )  # fmt: skip
    params = FlatTree.pack(start, in_front=DECAYED)
    optimizer, gradient = AdamW(params, betas=(0.9, 0.99), weight_decay=0.1), params.zeros_like()
    for step in range(60):
        rate, tree = 0.02 / (1 + step), random_model(rng)
        for path, leaf in trees.leaves(tree):
            theirs[path].grad = torch.tensor(leaf)
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 8.0)  # clips about half of the steps
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
        gradient.set_sum(tree)
        ours = optimizer.step(gradient, learning_rate=rate, clip=8.0)
        np.testing.assert_allclose(ours, norm.item(), rtol=1e-15)
    for path, leaf in trees.leaves(params.tree):
        np.testing.assert_allclose(leaf, theirs[path].detach().numpy(), rtol=0, atol=2e-15, err_msg=path)
        state = reference.state[theirs[path]]
        first, second = (dict(trees.leaves(moment.tree))[path] for moment in (optimizer.gradient_sum, optimizer.square_sum))
        np.testing.assert_allclose((1 - 0.9) * first, state["exp_avg"].numpy(), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose((1 - 0.99) * second, state["exp_avg_sq"].numpy(), rtol=1e-12, atol=1e-15)


def test_the_first_step_moves_every_entry_by_the_learning_rate_against_its_gradient():
    rng = np.random.default_rng(2)
    params = FlatTree.pack(random_model(rng))
    before, gradient = params.flat.copy(), params.zeros_like()
    gradient.set_sum(random_model(rng))
    AdamW(params, weight_decay=0.0).step(gradient, learning_rate=0.01)
    np.testing.assert_allclose(params.flat - before, -0.01 * np.sign(gradient.flat), atol=1e-7)


def test_decay_touches_what_is_marked_only():
    start = random_model(np.random.default_rng(3))
    params = FlatTree.pack(start, in_front=DECAYED)
    AdamW(params, weight_decay=0.5).step(params.zeros_like(), learning_rate=0.1)
    after = params.tree
    np.testing.assert_allclose(after.layers[0].weight, 0.95 * start.layers[0].weight)
    np.testing.assert_allclose(after.head, 0.95 * start.head)
    np.testing.assert_array_equal(after.layers[0].bias, start.layers[0].bias)
    np.testing.assert_array_equal(after.embedding, start.embedding)


def test_what_is_marked_lies_in_front():
    params = FlatTree.pack(random_model(np.random.default_rng(11)), in_front=set(trees.decayed(random_model(np.random.default_rng(11)))))
    assert set(trees.decayed(params.tree)) == DECAYED
    for path, leaf in trees.leaves(params.tree):
        start = (leaf.ctypes.data - params.flat.ctypes.data) // leaf.itemsize
        assert (start < params.front) is (path in DECAYED), path


@pytest.mark.parametrize("clip", [None, 0.7])
def test_a_weight_multiplies_the_gradient_before_it_is_clipped(clip):
    rng = np.random.default_rng(12)
    start, gradients = random_model(rng), [random_model(rng) for _ in range(3)]
    flats, norms = [], []
    for weight in (1.0, 0.25):
        params = FlatTree.pack(start, in_front=DECAYED)
        optimizer, gradient = AdamW(params), params.zeros_like()
        for tree in gradients:
            gradient.set_sum(trees.map(lambda leaf, weight=weight: leaf / weight, tree))
            norms.append(optimizer.step(gradient, learning_rate=0.1, clip=clip, weight=weight))
        flats.append(params.flat)
    np.testing.assert_allclose(flats[0], flats[1], rtol=0, atol=1e-14)
    np.testing.assert_allclose(norms[:3], norms[3:], rtol=1e-14)


def test_chunks_and_threads_do_not_show(monkeypatch):
    rng = np.random.default_rng(4)
    start, gradients = random_model(rng), [random_model(rng) for _ in range(3)]
    results = []
    for chunk, two_threads_from in ((5, 10**9), (32_768, 10**9), (7, 1)):
        for name, value in (("_CHUNK", chunk), ("_THREAD_CHUNK", chunk), ("_TWO_THREADS_FROM", two_threads_from)):
            monkeypatch.setattr(f"minitransformers.training.optimizer.{name}", value)
        params = FlatTree.pack(start, in_front=DECAYED)
        optimizer, gradient = AdamW(params), params.zeros_like()
        for tree in gradients:
            gradient.set_sum(tree)
            optimizer.step(gradient, learning_rate=0.1, clip=1.0)
        results.append(params.flat)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_float32_stays_float32_and_agrees_with_float64():
    results = {}
    for dtype in (np.float32, np.float64):
        rng = np.random.default_rng(5)
        params = FlatTree.pack(random_model(rng, dtype), in_front=DECAYED)
        optimizer, gradient = AdamW(params), params.zeros_like()
        for _ in range(10):
            gradient.set_sum(random_model(rng, dtype))
            optimizer.step(gradient, learning_rate=0.01, clip=1.0)
        assert {array.flat.dtype for array in (params, optimizer.gradient_sum, optimizer.square_sum)} == {np.dtype(dtype)}
        results[dtype] = np.concatenate([leaf.ravel() for _, leaf in trees.leaves(params.tree)])
    np.testing.assert_allclose(results[np.float32], results[np.float64], atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])  # the square of the last overflows
def test_a_norm_that_is_not_finite_is_reported_and_nothing_changes(value):
    params = FlatTree.pack(random_model(np.random.default_rng(6)))
    optimizer, gradient, before = AdamW(params), params.zeros_like(), params.flat.copy()
    gradient.tree.layers[0].weight[1, 2] = value
    with pytest.raises(TrainingDiverged, match=r"gradient norm is (nan|inf) at step 1"), np.errstate(over="ignore"):
        optimizer.step(gradient, learning_rate=0.1, clip=1.0)
    np.testing.assert_array_equal(params.flat, before)
    assert optimizer.steps == 0 and not optimizer.gradient_sum.flat.any()


def test_leaves_are_aligned_views_and_the_gaps_stay_zero():
    rng = np.random.default_rng(7)
    params = FlatTree.pack(random_model(rng, np.float32), in_front=DECAYED)
    optimizer, gradient = AdamW(params), params.zeros_like()
    gaps = np.ones(params.flat.size, bool)
    for _, leaf in trees.leaves(params.tree):
        assert np.shares_memory(leaf, params.flat) and leaf.ctypes.data % 64 == 0
        start = (leaf.ctypes.data - params.flat.ctypes.data) // 4
        gaps[start : start + leaf.size] = False
    for _ in range(3):
        gradient.set_sum(random_model(rng, np.float32))
        optimizer.step(gradient, learning_rate=0.1)
    assert gaps.any() and not params.flat[gaps].any() and params.flat[~gaps].all()


def test_a_tied_array_lies_there_once_and_gets_the_sum_of_its_gradients():
    rng = np.random.default_rng(8)
    shared = rng.normal(size=(3, 3))
    params = FlatTree.pack([shared, rng.normal(size=2), shared])
    assert params.tree[0] is params.tree[2] and params.flat.size == 16 + 8  # nine and two elements, each to a full line
    gradient, tree = params.zeros_like(), [np.full((3, 3), 2.0), np.ones(2), np.full((3, 3), 5.0)]
    gradient.set_sum(tree)
    np.testing.assert_array_equal(gradient.tree[0], np.full((3, 3), 7.0))
    gradient.add_sum(tree)
    np.testing.assert_array_equal(gradient.tree[2], np.full((3, 3), 14.0))
    assert gradient_norm(gradient) == pytest.approx(np.sqrt(9 * 14**2 + 2 * 2**2))


def test_packing_copies():
    start = random_model(np.random.default_rng(9))
    params = FlatTree.pack(start)
    params.flat += 1
    np.testing.assert_allclose(params.tree.head, start.head + 1)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda model: model._replace(head=model.head.T), r"head: got shape \(7, 3\), wants shape \(3, 7\)"),
        (lambda model: model._replace(head=model.head[:, :1]), r"head: got shape \(3, 1\)"),  # would broadcast
        (lambda model: model._replace(head=None), "head: got nothing"),
        (lambda model: model._replace(layers=[model.layers[0]] * 2), r"layers.1.weight: got shape \(3, 5\)"),
        (lambda model: model._replace(layers=[*model.layers, np.ones(1)]), "layers.2: got an array, wants nothing"),
    ],
)
def test_a_gradient_of_another_structure_is_refused(change, names):
    model = random_model(np.random.default_rng(10))
    with pytest.raises(ValueError, match=names):
        FlatTree.pack(model).set_sum(change(model))


def test_mixed_and_missing_arrays_are_refused():
    with pytest.raises(ValueError, match=r"1: got float64, wants one floating dtype"):
        FlatTree.pack([np.ones(2, np.float32), np.ones(2)])
    with pytest.raises(ValueError, match="0: got int64"):
        FlatTree.pack([np.ones(2, int)])
    with pytest.raises(ValueError, match="tree: got no arrays"):
        FlatTree.pack([None])


@pytest.mark.parametrize("setting", [{"betas": (0.9, 1.0)}, {"betas": (0.9,)}, {"eps": 0.0}, {"eps": 1e-320}, {"weight_decay": -0.1}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        AdamW(FlatTree.pack([np.ones(2)]), **setting)


@pytest.mark.parametrize("setting", [{"learning_rate": -0.1}, {"learning_rate": float("nan")}, {"clip": 0.0}, {"clip": -1.0}, {"clip": float("nan")}])
def test_impossible_steps_are_refused_and_nothing_changes(setting):
    params = FlatTree.pack([np.ones(2)])
    optimizer, gradient = AdamW(params), params.zeros_like()
    with pytest.raises(ValueError, match=f"{next(iter(setting))}: got"):
        optimizer.step(gradient, **{"learning_rate": 0.1, **setting})
    assert optimizer.steps == 0
    np.testing.assert_array_equal(params.tree[0], 1)
