"""Hierarchical Transformer: words to sentences, sentences to the document, and the document back to the words."""

import autograd.numpy as anp
import naive_encoder as naive
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.foundation import slot
from minitransformers.long_context.attentive_pooling import AttentivePooling
from minitransformers.long_context.hierarchical_transformer import (
    HierarchicalTransformer,
    PooledEncoder,
    hierarchical_transformer,
    init_hierarchical_transformer,
)
from minitransformers.long_context.mean_pooling import mean_pooling

# Two documents of three sentences of up to three words; the last sentence of the second is empty.
MASK = np.array([[[1, 1, 1], [1, 0, 0], [1, 1, 0]], [[1, 1, 0], [1, 1, 1], [0, 0, 0]]], bool)


def random_model(seed, shared=False, num_layers=1, places=True):
    rng = np.random.default_rng(seed)
    sizes = {"num_heads": 2, "max_sentences": 3, "d_hidden": 3, "num_layers": num_layers}
    params = init_hierarchical_transformer(rng, 4, **sizes, shared=shared, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), params)
    return params if places else params._replace(places=None), rng


def run(params, x, **settings):
    return hierarchical_transformer(params, x, num_heads=2, **settings)


def mixing(params, x, *, num_heads, mask=None):
    """A layer that adds a learned multiple of the mean of all: the smallest in which positions hear each other."""
    mean = x.mean(axis=-2, keepdims=True)
    return x + params * mean, lambda dout: (np.sum(dout * mean), dout + params * dout.mean(axis=-2, keepdims=True))


def stack(layers, x):
    for layer in layers:
        x = naive.block(layer, x, 2)
    return x


def textbook(params, x, mask):
    """One document as a list of sentences of which only real words are kept: words one after the other, sentences, document."""
    again = params.words if params.again is None else params.again
    texts = [stack(params.words.layers, words[real]) for words, real in zip(x, mask, strict=True) if real.any()]
    pooled = anp.stack([naive.pool(params.words.pool, text) for text in texts])
    context = stack(params.sentences, pooled + params.places.table[: len(pooled)] if params.places else pooled)
    words = [stack(again.layers, anp.concatenate([text, context[i][None]]))[:-1] for i, text in enumerate(texts)]
    sentences = anp.stack([naive.pool(again.pool, text) for text in words])
    return anp.concatenate(words), sentences, naive.pool(params.pool, sentences)


@pytest.mark.parametrize(("shared", "num_layers"), [(False, 1), (True, 1), (True, 2)])
def test_equals_the_loops_over_sentences_and_their_gradients(shared, num_layers):
    params, rng = random_model(0, shared, num_layers)
    x = rng.normal(size=(2, 3, 3, 4))
    dwords, dsentences, ddocument = rng.normal(size=x.shape) * MASK[..., None], rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 4))
    out, backward = run(params, x, mask=MASK)
    present = MASK.any(axis=-1)
    for text in range(2):
        words, sentences, document = textbook(params, x[text], MASK[text])
        np.testing.assert_allclose(out.words[text][MASK[text]], words, rtol=0, atol=1e-11)
        np.testing.assert_allclose(out.sentences[text][present[text]], sentences, rtol=0, atol=1e-11)
        np.testing.assert_allclose(out.document[text], document, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(out.sentences[1, 2], 0)

    def loss(params, x):
        total = 0.0
        for text in range(2):
            words, sentences, document = textbook(params, x[text], MASK[text])
            total = total + anp.sum(dwords[text][MASK[text]] * words) + anp.sum(dsentences[text][present[text]] * sentences)
            total = total + anp.sum(ddocument[text] * document)
        return total

    dparams, dx = backward((dwords, dsentences, ddocument))
    dleaves, expected = naive.gradients(loss, params, x)
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-10)
    naive.close(dparams, dleaves)


def test_a_word_hears_the_words_of_every_other_sentence():
    params, rng = random_model(1)
    x = rng.normal(size=(3, 2, 4))
    out, backward = run(params, x)
    dwords = np.zeros_like(out.words)
    dwords[0, 1] = rng.normal(size=4)
    assert (backward((dwords, None, None))[1] != 0).all()


def test_sentences_know_nothing_of_each_other_where_the_document_does_not_come_back():
    def deaf(params, x, *, num_heads, mask=None):
        """A layer over words and sentences of which none hears another."""
        return params * x, lambda dout: (np.sum(dout * x), params * dout)

    params = HierarchicalTransformer(PooledEncoder([np.array(0.7)], None), None, [np.array(1.3)], None, None)
    x = np.random.default_rng(2).normal(size=(3, 2, 4))
    out, backward = run(params, x, layer=deaf, pool=slot(mean_pooling))
    dsentences = np.zeros_like(out.sentences)
    dsentences[1] = 1.0
    dx = backward((None, dsentences, None))[1]
    assert (dx[1] != 0).all() and not dx[[0, 2]].any()


@pytest.mark.parametrize("places", [True, False])
def test_only_the_table_of_places_knows_the_order_of_sentences(places):
    params, rng = random_model(3, places=places)
    x, order = rng.normal(size=(3, 2, 4)), np.array([2, 0, 1])
    out, moved = run(params, x)[0], run(params, x[order])[0]
    assert np.allclose(moved.sentences, out.sentences[order], rtol=0, atol=1e-12) is not places
    assert np.allclose(moved.document, out.document, rtol=0, atol=1e-12) is not places


def test_padding_rows_change_nothing_and_get_nothing():
    params, rng = random_model(4)
    x = rng.normal(size=(2, 3, 3, 4))
    out, backward = run(params, x, mask=MASK)
    other = np.where(MASK[..., None], x, 100 * rng.normal(size=x.shape))
    again, _ = run(params, other, mask=MASK)
    np.testing.assert_array_equal(again.words[MASK], out.words[MASK])
    np.testing.assert_array_equal(again.sentences, out.sentences)
    np.testing.assert_array_equal(again.document, out.document)
    dwords = rng.normal(size=x.shape) * MASK[..., None]
    dx = backward((dwords, rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 4))))[1]
    np.testing.assert_array_equal(dx[~MASK], 0)


def test_an_empty_sentence_behind_the_last_is_as_if_it_were_not_there():
    params, rng = random_model(5)
    x = rng.normal(size=(3, 2, 4))
    mask = np.array([[1, 1], [1, 0], [0, 0]], bool)
    out, short = run(params, x, mask=mask)[0], run(params, x[:2], mask=mask[:2])[0]
    np.testing.assert_allclose(out.document, short.document, rtol=0, atol=1e-14)
    np.testing.assert_allclose(out.words[:2][mask[:2]], short.words[mask[:2]], rtol=0, atol=1e-14)


def test_a_document_without_a_word_is_zero_and_teaches_nothing():
    params, rng = random_model(6)
    out, backward = run(params, rng.normal(size=(3, 2, 4)), mask=np.zeros((3, 2), bool))
    np.testing.assert_array_equal(out.document, 0)
    for _, gradient in trees.leaves(backward((None, rng.normal(size=(3, 4)), rng.normal(size=4)))):
        np.testing.assert_array_equal(gradient, 0)


def test_a_shared_pass_is_two_passes_with_the_same_numbers_and_its_gradient_their_sum():
    shared, rng = random_model(7, shared=True)
    both, x = shared._replace(again=shared.words), rng.normal(size=(2, 3, 3, 4))
    out, backward = run(shared, x, mask=MASK)
    same, same_backward = run(both, x, mask=MASK)
    np.testing.assert_array_equal(out.words, same.words)
    dout = (rng.normal(size=x.shape), rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 4)))
    (one, dx), (two, dx_of_two) = backward(dout), same_backward(dout)
    np.testing.assert_array_equal(dx, dx_of_two)
    naive.close(one.words, [leaf for _, leaf in trees.leaves(trees.map(np.add, two.words, two.again))], 1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_is_right_with_deeper_stacks_and_without_a_table(shared):
    params, rng = random_model(8, shared, num_layers=2, places=False)
    assert check_gradients(hierarchical_transformer, params, rng.normal(size=(3, 2, 4)), num_heads=2).passed


def test_the_mean_fits_the_slot_of_pooling():
    params, rng = random_model(9)
    params = params._replace(words=params.words._replace(pool=None), again=params.again._replace(pool=None), pool=None)
    x = rng.normal(size=(3, 2, 4))
    out, _ = run(params, x, pool=slot(mean_pooling))
    np.testing.assert_allclose(out.document, out.words.mean(axis=(0, 1)), rtol=0, atol=1e-14)
    assert check_gradients(hierarchical_transformer, params, x, num_heads=2, pool=slot(mean_pooling)).passed


@pytest.mark.parametrize("forgotten", ["nothing", "the first pass", "the second pass", "the pooling of the second pass"])
def test_the_check_refuses_a_backward_that_forgets(forgotten):
    rng = np.random.default_rng(10)
    pools = [AttentivePooling(*(rng.normal(size=shape) for shape in ((2, 2), 2))) for _ in range(2)]
    params = HierarchicalTransformer(PooledEncoder([np.array(0.7)], pools[0]), None, [np.array(1.3)], None, pools[1])
    settings = {"num_heads": 1, "layer": mixing}

    def wrong(params, x):
        out, backward = hierarchical_transformer(params, x, **settings)
        apart_backward = hierarchical_transformer(params._replace(again=params.words), x, **settings)[1]

        def forgetful(dout):
            (dparams, dx), (apart, _) = backward(dout), apart_backward(dout)
            found = {
                "nothing": dparams.words, "the first pass": apart.again, "the second pass": apart.words,
                "the pooling of the second pass": dparams.words._replace(pool=apart.words.pool),
            }  # fmt: skip
            return dparams._replace(words=found[forgotten]), dx

        return out, forgetful

    assert check_gradients(wrong, params, rng.normal(size=(3, 2, 2))).passed is (forgotten == "nothing")


def test_what_does_not_fit_is_refused_by_name():
    params, rng = random_model(11)
    with pytest.raises(ValueError, match=r"params\.places: got 3 rows, wants one for each of 4 sentences"):
        run(params, rng.normal(size=(4, 2, 4)))
    with pytest.raises(ValueError, match=r"params\.sentences: got no layer, wants at least one"):
        run(params._replace(sentences=[]), rng.normal(size=(3, 2, 4)))
    with pytest.raises(ValueError, match="mask: got shape"):
        run(params, rng.normal(size=(3, 2, 4)), mask=np.ones((3, 3), bool))


@pytest.mark.parity
def test_parity_with_torch_layers_put_together():
    torch = pytest.importorskip("torch")
    params, rng = random_model(12)
    x, mask = rng.normal(size=(2, 3, 3, 4)), MASK.copy()
    mask[1, 2, 0] = True                                     # a plain softmax makes NaN of a sentence without a word
    dwords, dsentences, ddocument = rng.normal(size=x.shape) * mask[..., None], rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 4))
    hidden = torch.tensor(~mask.reshape(6, 3))

    def pool(p, h, hidden):
        scores = torch.tanh(h @ torch.tensor(p.weight)) @ torch.tensor(p.score)
        return (torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)[..., None] * h).sum(-2)

    leaf, table = (torch.tensor(a, requires_grad=True) for a in (x, params.places.table))
    h = naive.torch_layer(params.words.layers[0], 2)(leaf.reshape(6, 3, 4), src_key_padding_mask=hidden)
    d = naive.torch_layer(params.sentences[0], 2)(pool(params.words.pool, h, hidden).reshape(2, 3, 4) + table)
    joined, with_context = torch.cat([h, d.reshape(6, 1, 4)], 1), torch.cat([hidden, torch.zeros(6, 1, dtype=torch.bool)], 1)
    words = naive.torch_layer(params.again.layers[0], 2)(joined, src_key_padding_mask=with_context)[:, :3]
    sentences = pool(params.again.pool, words, hidden).reshape(2, 3, 4)
    document = pool(params.pool, sentences, torch.zeros(2, 3, dtype=torch.bool))
    loss = (words.reshape(2, 3, 3, 4) * torch.tensor(dwords)).sum() + (sentences * torch.tensor(dsentences)).sum()
    (loss + (document * torch.tensor(ddocument)).sum()).backward()
    out, backward = run(params, x, mask=mask)
    np.testing.assert_allclose(out.words[mask], words.detach().numpy().reshape(2, 3, 3, 4)[mask], rtol=0, atol=1e-12)
    np.testing.assert_allclose(out.document, document.detach().numpy(), rtol=0, atol=1e-12)
    dparams, dx = backward((dwords, dsentences, ddocument))
    np.testing.assert_allclose(dx, leaf.grad.numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(dparams.places.table, table.grad.numpy(), rtol=0, atol=1e-11)
