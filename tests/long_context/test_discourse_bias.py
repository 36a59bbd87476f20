"""Discourse bias: what two tokens are to each other in a document is added to the score between them."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.attention.scaled_dot_product_attention import attention_weights, scaled_dot_product_attention
from minitransformers.long_context.discourse_bias import DiscourseBias, discourse_bias, discourse_relations, init_discourse_bias

# Sections, paragraphs and sentences of eight tokens.
UNITS = np.array([[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 2, 2, 3, 3, 4]])


def related(units):
    """Two tokens at a time: levels are walked inwards until the units differ."""
    levels, n = units.shape
    found = np.zeros((n, n), int)
    for i in range(n):
        for j in range(n):
            while found[i, j] < levels and units[found[i, j], i] == units[found[i, j], j]:
                found[i, j] += 1
    return found


def textbook(table, relations):
    """One head, one query and one key at a time."""
    heads = range(table.shape[1])
    return anp.stack([anp.stack([anp.stack([anp.stack([table[r, h] for r in row]) for row in text]) for h in heads]) for text in relations])


def test_equals_the_loops_and_their_gradients():
    rng = np.random.default_rng(0)
    table, relations, dout = rng.normal(size=(4, 3)), rng.integers(4, size=(2, 5, 6)), rng.normal(size=(2, 3, 5, 6))
    out, backward = discourse_bias(DiscourseBias(table), relations=relations)
    np.testing.assert_array_equal(out, textbook(table, relations))
    expected = autograd.grad(lambda table: anp.sum(dout * textbook(table, relations)))(table)
    np.testing.assert_allclose(backward(dout).table, expected, rtol=0, atol=1e-13)


def test_relations_equal_those_found_by_walking_inwards():
    np.testing.assert_array_equal(discourse_relations(UNITS), related(UNITS))


@pytest.mark.parametrize("seed", range(5))
def test_relations_of_random_documents_equal_those_found_by_walking_inwards(seed):
    rng = np.random.default_rng(seed)
    begins = np.logical_or.accumulate(rng.random((3, 20)) < np.array([0.1, 0.15, 0.3])[:, None], axis=0)
    units = np.cumsum(begins * rng.integers(1, 4, size=20), axis=1)  # numbers may be left out
    relations = discourse_relations(units)
    np.testing.assert_array_equal(relations, related(units))
    np.testing.assert_array_equal(relations, relations.T)
    np.testing.assert_array_equal(np.diagonal(relations), 3)


def test_a_batch_of_documents_is_each_of_them():
    other = np.cumsum(np.random.default_rng(1).random((1, 8)) < 0.4, axis=1).repeat(3, axis=0)
    both = discourse_relations(np.stack([UNITS, other]))
    np.testing.assert_array_equal(both, np.stack([related(UNITS), related(other)]))


def test_relations_between_sentences_come_from_any_parser():
    between = np.array([[0, 1, 2], [1, 0, 1], [2, 1, 0]])    # the same sentence, cause, contrast
    sentence = np.array([0, 0, 1, 1, 1, 2])
    bias, _ = discourse_bias(DiscourseBias(np.array([[0.0], [5.0], [-1.0]])), relations=between[sentence[:, None], sentence])
    assert bias.shape == (1, 6, 6) and bias[0, 0, 3] == 5 and bias[0, 5, 0] == -1 and bias[0, 2, 4] == 0


def test_relations_that_do_not_occur_get_exactly_nothing():
    rng = np.random.default_rng(2)
    dtable = discourse_bias(DiscourseBias(rng.normal(size=(4, 2))), relations=np.ones((3, 3), int))[1](rng.normal(size=(2, 3, 3))).table
    np.testing.assert_array_equal(dtable[[0, 2, 3]], 0)
    assert (dtable[1] != 0).all()


def in_attention(params, query, key, value):
    bias, bias_backward = discourse_bias(params, relations=discourse_relations(UNITS))
    out, backward = scaled_dot_product_attention(query, key, value, bias)

    def both(dout):
        dquery, dkey, dvalue, dbias = backward(dout)
        return bias_backward(dbias), dquery, dkey, dvalue

    return out, both


def test_below_a_softmax_only_differences_between_relations_count():
    rng = np.random.default_rng(3)
    params, arrays = DiscourseBias(rng.normal(size=(4, 2))), rng.normal(size=(3, 2, 8, 5))
    out, backward = in_attention(params, *arrays)
    raised, _ = in_attention(DiscourseBias(params.table + np.array([3.0, -2.0])), *arrays)
    np.testing.assert_allclose(raised, out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(backward(rng.normal(size=out.shape))[0].table.sum(axis=0), 0, rtol=0, atol=1e-13)


def test_a_head_can_keep_to_the_sentence_or_leave_it():
    table = np.array([[0.0, 50.0], [0.0, 0.0], [0.0, 0.0], [50.0, 0.0]])
    bias, _ = discourse_bias(DiscourseBias(table), relations=discourse_relations(UNITS))
    query, key = np.random.default_rng(4).normal(size=(2, 2, 8, 5))
    kept, left = attention_weights(query, key, bias)
    np.testing.assert_allclose(np.sum(kept * (related(UNITS) == 3), axis=1), 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.sum(left * (related(UNITS) == 0), axis=1), 1, rtol=0, atol=1e-12)


def test_it_starts_small():
    table = init_discourse_bias(np.random.default_rng(5), num_heads=50, num_relations=40).table
    assert table.shape == (40, 50) and table.dtype == np.float32
    np.testing.assert_allclose(table.std(), 0.02, rtol=0.1)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([[0, 1, 0]], "units: got numbers that go backwards"),
        ([[0, 0, 0, 1], [0, 1, 0, 2]], "units: got numbers that go backwards"),  # counted anew within the unit above
        ([[0, 0, 1], [0, 1, 1]], "units: got a unit that goes on where one above it ends"),
    ],
)
def test_units_that_do_not_nest_are_refused(units, message):
    with pytest.raises(ValueError, match=message):
        discourse_relations(np.array(units))


def test_a_relation_beyond_the_table_is_refused_by_name():
    with pytest.raises(ValueError, match=r"relations: got 2 to 4, wants 0 to 3, the rows of params\.table"):
        discourse_bias(DiscourseBias(np.ones((4, 2))), relations=np.array([[2, 4]]))


def last_one_wins(params, *, relations):
    out, _ = discourse_bias(params, relations=relations)

    def wrong(dout):
        dtable = np.zeros_like(params.table)
        for h in range(dtable.shape[1]):
            dtable[relations, h] += dout[h]                  # NumPy keeps one of the pairs of a relation
        return DiscourseBias(dtable)

    return out, wrong


def test_the_check_refuses_a_gradient_in_which_pairs_do_not_add_up():
    params = DiscourseBias(np.random.default_rng(6).normal(size=(4, 2)))
    assert check_gradients(discourse_bias, params, relations=related(UNITS)).passed
    assert not check_gradients(last_one_wins, params, relations=related(UNITS)).passed


@pytest.mark.parity
def test_parity_with_an_embedding_on_the_scores_in_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    params, arrays, dout = DiscourseBias(rng.normal(size=(4, 2))), rng.normal(size=(3, 2, 8, 5)), rng.normal(size=(2, 8, 5))
    table = torch.tensor(params.table, requires_grad=True)
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    bias = torch.nn.functional.embedding(torch.tensor(related(UNITS)), table).permute(2, 0, 1)
    theirs = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=bias)
    theirs.backward(torch.tensor(dout))
    out, backward = in_attention(params, *arrays)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    dparams, *gradients = backward(dout)
    for own, leaf in zip((dparams.table, *gradients), (table, *leaves), strict=True):
        np.testing.assert_allclose(own, leaf.grad.numpy(), rtol=0, atol=1e-12)
