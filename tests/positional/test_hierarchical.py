"""Hierarchical positions: a sum over levels, each looked up in its own short table; ids made from beginnings."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.positional.hierarchical import Hierarchical, hierarchical, init_hierarchical, places_of
from minitransformers.positional.learned import Learned, learned

PLACES = (2, 4, 3)


def textbook_hierarchical(tables, weights, x, ids):
    """One text, one token and one level at a time."""
    texts = []
    for text, levels in zip(x, ids, strict=True):
        tokens = []
        for t in range(len(text)):
            token = text[t]
            for level, table in enumerate(tables):
                token = token + weights[level] * table[levels[level, t]]
            tokens.append(token)
        texts.append(anp.stack(tokens))
    return anp.stack(texts)


def counted(begins):
    """Places by walking through the text with one counter for each level."""
    levels, length = begins.shape
    counters, found = [-1] * (levels + 1), []
    for t in range(length):
        first = 0 if t == 0 else next((level for level in range(levels) if begins[level, t]), levels)
        counters[first] += 1
        counters[first + 1 :] = [0] * (levels - first)
        found.append(list(counters))
    return np.array(found).T


def random_call(rng, d_model=3, length=6):
    params = Hierarchical([rng.normal(size=(n, d_model)) for n in PLACES], rng.normal(size=len(PLACES)))
    ids = np.stack([rng.integers(n, size=(2, length)) for n in PLACES], axis=1)
    return params, rng.normal(size=(2, length, d_model)), ids


def test_equals_the_loops_and_their_gradients():
    rng = np.random.default_rng(0)
    params, x, ids = random_call(rng)
    dout = rng.normal(size=x.shape)
    out, backward = hierarchical(params, x, ids=ids)
    np.testing.assert_allclose(out, textbook_hierarchical(*params, x, ids), rtol=0, atol=1e-13)

    def loss(tables, weights, x):
        return anp.sum(dout * textbook_hierarchical(tables, weights, x, ids))

    dtables, dweights, dx = autograd.grad(loss, (0, 1, 2))(params.tables, params.weights, x)
    found, found_dx = backward(dout)
    for own, theirs in zip([*found.tables, found.weights, found_dx], [*dtables, dweights, dx], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_one_level_of_weight_one_is_a_learned_table():
    rng = np.random.default_rng(1)
    table, x, dout, positions = rng.normal(size=(7, 3)), *rng.normal(size=(2, 1, 5, 3)), np.array([6, 0, 6, 1, 2])
    out, backward = hierarchical(Hierarchical([table], np.ones(1)), x, ids=positions[None, None])
    flat, flat_backward = learned(Learned(table), x, positions=positions)
    np.testing.assert_array_equal(out, flat)
    np.testing.assert_allclose(backward(dout)[0].tables[0], flat_backward(dout)[0].table, atol=1e-15)


def test_tokens_of_one_paragraph_differ_only_by_the_levels_below_it():
    params, x, _ = random_call(np.random.default_rng(2))
    ids = np.array([[1, 1, 1, 1, 1, 1], [2, 2, 2, 3, 3, 3], [0, 1, 2, 0, 1, 2]])[None].repeat(2, axis=0)
    added = hierarchical(params, np.zeros_like(x), ids=ids)[0][0]
    fine = params.weights[2] * params.tables[2]
    np.testing.assert_allclose(added[1] - added[0], fine[1] - fine[0], atol=1e-14)
    np.testing.assert_allclose(added[3:] - added[:3], np.broadcast_to(added[3] - added[0], (3, 3)), atol=1e-14)


def test_places_that_do_not_occur_get_exactly_nothing():
    params, x, _ = random_call(np.random.default_rng(3))
    grads, _ = hierarchical(params, x, ids=np.ones((2, 3, 6), int))[1](x)
    for dtable in grads.tables:
        np.testing.assert_array_equal(np.delete(dtable, 1, axis=0), 0)
        assert (dtable[1] != 0).all()


def test_a_level_of_weight_nothing_learns_no_rows_and_can_still_come_to_count():
    params, x, ids = random_call(np.random.default_rng(4))
    grads, _ = hierarchical(params._replace(weights=np.array([0.0, 1.0, 0.0])), x, ids=ids)[1](x)
    assert not grads.tables[0].any() and not grads.tables[2].any()
    assert (grads.weights != 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_places_equal_those_counted_by_walking_through_the_text(seed):
    begins = np.random.default_rng(seed).random((4, 3, 30)) < np.array([0.05, 0.1, 0.2])[:, None]
    ids = places_of(begins)
    np.testing.assert_array_equal(ids, np.stack([counted(text) for text in begins]))
    assert begins.dtype == bool and ids.dtype.kind == "i"


def test_places_grow_by_steps_of_one_within_the_unit_above():
    ids = places_of(np.random.default_rng(6).random((2, 200)) < np.array([[0.03], [0.1]]))
    same_paragraph = np.diff(ids[0]) == 0
    assert np.isin(np.diff(ids[1])[same_paragraph & (ids[1][1:] > 0)], (0, 1)).all()
    assert (ids[2] < 200).all() and (ids >= 0).all()


def test_the_error_names_the_level_and_its_rows():
    params, x, ids = random_call(np.random.default_rng(7))
    ids[0, 2, 1] = 3
    with pytest.raises(ValueError, match=r"ids: got 0 to 3 at level 2, wants 0 to 2"):
        hierarchical(params, x, ids=ids)


@pytest.mark.parametrize("size", [0, -1, 1.5, np.nan, np.inf])
def test_sizes_that_are_not_whole_numbers_are_refused_by_name(size):
    with pytest.raises(ValueError, match="d_model: got"):
        init_hierarchical(np.random.default_rng(0), size, places=[2, 3])
    with pytest.raises(ValueError, match=r"places\.1: got"):
        init_hierarchical(np.random.default_rng(0), 4, places=[2, size])


def test_no_levels_are_refused():
    with pytest.raises(ValueError, match="places: got no level"):
        init_hierarchical(np.random.default_rng(0), 4, places=[])


@pytest.mark.parametrize("shape", [(5,), (), (0, 5), (2, 0)])
def test_places_need_levels_and_a_text(shape):
    with pytest.raises(ValueError, match="begins: got shape"):
        places_of(np.ones(shape, bool))


def test_it_starts_small_with_all_levels_counting_alike():
    params = init_hierarchical(np.random.default_rng(8), 64, places=[300, 200])
    assert [table.shape for table in params.tables] == [(300, 64), (200, 64)] and params.weights.tolist() == [1, 1]
    np.testing.assert_allclose([table.std() for table in params.tables], 0.02, rtol=0.02)
    assert params.tables[0].dtype == params.weights.dtype == np.float32


def weights_forgotten(params, x, *, ids):
    out, backward = hierarchical(params, x, ids=ids)

    def unweighted(dout):
        grads, dx = backward(dout)
        plain, _ = hierarchical(params._replace(weights=np.ones(3)), x, ids=ids)[1](dout)
        return grads._replace(tables=plain.tables), dx

    return out, unweighted


def test_the_checker_refuses_rows_whose_gradient_forgets_the_weight_of_the_level():
    params, x, ids = random_call(np.random.default_rng(9))
    report = check_gradients(weights_forgotten, params, x, ids=ids)
    assert not report.passed and report.worst.path.startswith("params.tables")


@pytest.mark.parity
def test_parity_with_torch_embeddings():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(10)
    params, x, ids = random_call(rng)
    dout = rng.normal(size=x.shape)
    tables = [torch.tensor(table, requires_grad=True) for table in params.tables]
    weights = torch.tensor(params.weights, requires_grad=True)
    theirs = torch.tensor(x)
    for level, table in enumerate(tables):
        theirs = theirs + weights[level] * torch.nn.functional.embedding(torch.tensor(ids[:, level]), table)
    theirs.backward(torch.tensor(dout))
    out, backward = hierarchical(params, x, ids=ids)
    grads, _ = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    for own, leaf in zip([*grads.tables, grads.weights], [*tables, weights], strict=True):
        np.testing.assert_allclose(own, leaf.grad.numpy(), rtol=0, atol=1e-12)
