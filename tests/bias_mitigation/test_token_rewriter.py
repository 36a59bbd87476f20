"""The rewriter for each token: what it sees, what it cannot see, and what it learns on a toy."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import Embedding
from minitransformers.basics.linear import Linear
from minitransformers.bias_mitigation.token_rewriter import TokenRewriter, init_token_rewriter, token_rewriter

RNG = np.random.default_rng(0)
PARAMS = TokenRewriter(
    Embedding(RNG.normal(size=(7, 3))), Linear(RNG.normal(size=(6, 5)), RNG.normal(size=5)), Linear(RNG.normal(size=(5, 7)), RNG.normal(size=7))
)
IDS = np.array([[4, 0, 4, 2], [6, 2, 2, 1]])
DOUT = RNG.normal(size=(2, 4, 7))


def textbook(table, w1, b1, w2, b2):
    rows = []
    for text in IDS:
        for t, token in enumerate(text):
            left = text[t - 1] if t else 3
            hidden = anp.concatenate([table[token], table[left]]) @ w1 + b1
            logits = anp.maximum(hidden, 0) @ w2 + b2
            rows.append(anp.stack([logits[v] + (1.5 if v == token else 0.0) for v in range(7)]))
    return anp.reshape(anp.stack(rows), (2, 4, 7))


def test_it_is_two_rows_and_two_maps_and_its_gradients_are_autograd_s():
    out, backward = token_rewriter(PARAMS, ids=IDS, start=3, copy_bias=1.5)
    flat = [leaf for _, leaf in trees.leaves(PARAMS)]
    np.testing.assert_allclose(out, textbook(*flat), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda args: anp.sum(DOUT * textbook(*args)))(tuple(flat))
    for (path, own), their in zip(trees.leaves(backward(DOUT)), expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10, err_msg=path)


def test_a_position_sees_itself_and_the_one_before_and_nothing_else():
    out, _ = token_rewriter(PARAMS, ids=IDS[0], start=3)
    for place in range(4):
        other = IDS[0].copy()
        other[place] = 5
        changed = np.flatnonzero((token_rewriter(PARAMS, ids=other, start=3)[0] != out).any(-1)).tolist()
        assert changed == [p for p in (place, place + 1) if p < 4]
    assert np.flatnonzero((token_rewriter(PARAMS, ids=IDS[0], start=5)[0] != out).any(-1)).tolist() == [0]


def test_without_weights_every_token_is_copied():
    nothing = trees.map(np.zeros_like, PARAMS)
    out, _ = token_rewriter(nothing, ids=IDS)
    np.testing.assert_array_equal(out.argmax(-1), IDS)
    np.testing.assert_array_equal(out.max(-1), np.full(IDS.shape, 2.0))
    assert not token_rewriter(nothing, ids=IDS, copy_bias=0.0)[0].any()


def test_new_parameters_have_their_deviations_and_the_copy_bias_mostly_wins():
    params = init_token_rewriter(np.random.default_rng(1), vocabulary=40, d_model=24, d_hidden=64, dtype=np.float64)
    assert params.embedding.weight.std() == pytest.approx(1, abs=0.1)
    assert params.hidden.weight.std() == pytest.approx(48**-0.5, rel=0.1) and params.head.weight.std() == pytest.approx(1 / 8, rel=0.1)
    assert not params.hidden.bias.any() and not params.head.bias.any()
    small = init_token_rewriter(np.random.default_rng(1), vocabulary=40, d_model=24, d_hidden=64, std=0.01)
    assert small.embedding.weight.dtype == np.float32 and small.embedding.weight.std() == pytest.approx(0.01, rel=0.1)


def test_it_learns_to_leave_a_name_and_no_rule_without_context_can():
    """Word 5 becomes 6, but not behind the title 4: the two tokens decide it."""
    rng = np.random.default_rng(2)
    params = init_token_rewriter(rng, vocabulary=8, d_model=6, d_hidden=12, dtype=np.float64)
    source = rng.integers(1, 6, size=(60, 7))
    behind_a_title = np.concatenate([np.zeros((60, 1), bool), source[:, :-1] == 4], axis=1)
    target = np.where((source == 5) & ~behind_a_title, 6, source)
    for _ in range(300):
        logits, backward = token_rewriter(params, ids=source)
        _, loss_backward = cross_entropy(logits, targets=target)
        gradient = backward(loss_backward(np.array(1.0)))
        params = trees.map(lambda leaf, own: leaf - 0.5 * own, params, gradient)
    np.testing.assert_array_equal(token_rewriter(params, ids=source)[0].argmax(-1), target)
    assert (np.where(source == 5, 6, source) != target).any()


def forgets_the_neighbour(params):
    out, backward = token_rewriter(params, ids=IDS, start=3)
    hidden_weight = params.hidden.weight

    def wrong(dlogits):
        gradient = backward(dlogits)
        pair = np.concatenate([params.embedding.weight[IDS], params.embedding.weight[np.array([[3, 4, 0, 4], [3, 6, 2, 2]])]], -1)
        dhidden = (dlogits @ params.head.weight.T) * (pair @ hidden_weight + params.hidden.bias > 0)
        dembedding = np.zeros_like(params.embedding.weight)
        np.add.at(dembedding, IDS, (dhidden @ hidden_weight.T)[..., :3])
        return gradient._replace(embedding=Embedding(dembedding))

    return out, wrong


def test_the_checker_refuses_a_table_that_learns_from_the_token_alone():
    report = check_gradients(forgets_the_neighbour, PARAMS)
    assert not report.passed and "embedding" in str(report)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="start: got 7"):
        token_rewriter(PARAMS, ids=IDS, start=7)
    with pytest.raises(ValueError, match=r"params\.hidden: got a map of 5 features, wants 6"):
        token_rewriter(PARAMS._replace(hidden=Linear(np.ones((5, 5)), None)), ids=IDS)
    with pytest.raises(ValueError, match="ids: got ids from -1"):
        token_rewriter(PARAMS, ids=IDS - 1)
