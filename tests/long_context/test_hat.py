"""HAT: attention inside segments and among their first tokens, in turn."""

import autograd.numpy as anp
import naive_encoder as naive
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.long_context.encoder_block import encoder_block
from minitransformers.long_context.hat import Hat, HatBlock, hat, init_hat

LAYOUTS = {"interleaved": ["SC", "SC"], "ad hoc": ["S", "C", "C"], "early": ["SC", "S"], "late": ["S", "SC"]}
MASK = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 0], [1, 0, 0, 1, 1, 0, 0, 0, 0]], bool)


def random_hat(seed, layout, max_segments=3, places=True):
    rng = np.random.default_rng(seed)
    params = init_hat(rng, 4, layout=layout, max_segments=max_segments, num_heads=2, d_hidden=3, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), params)
    return params if places else Hat([block._replace(places=None) for block in params.blocks]), rng


def textbook(params, x, real, length=3):
    """One text, as a list of segments of which only the real tokens are kept; they come out as rows, one after the other."""
    segments = [x[s : s + length][real[s : s + length]] for s in range(0, len(x), length)]
    segments = [segment for segment in segments if len(segment)]
    for block in params.blocks:
        if block.segment is not None:
            segments = [naive.block(block.segment, segment, 2) for segment in segments]
        if block.cross is not None:
            heads = anp.stack([segment[0] for segment in segments])
            if block.places is not None:
                heads = heads + block.places.table[: len(heads)]
            crossed = naive.block(block.cross, heads, 2)
            segments = [anp.concatenate([crossed[i][None], segment[1:]]) for i, segment in enumerate(segments)]
    return anp.concatenate(segments)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_equals_the_loops_over_segments_and_their_gradients(layout):
    params, rng = random_hat(0, layout)
    x, dout = rng.normal(size=(2, 2, 9, 4))
    dout *= MASK[..., None]
    out, backward = hat(params, x, length=3, num_heads=2, mask=MASK)
    for text in range(2):
        np.testing.assert_allclose(out[text][MASK[text]], textbook(params, x[text], MASK[text]), rtol=0, atol=1e-11)

    def loss(params, x):
        return sum(anp.sum(dout[text][MASK[text]] * textbook(params, x[text], MASK[text])) for text in range(2))

    dparams, dx = backward(dout)
    dleaves, expected = naive.gradients(loss, params, x)
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-10)
    naive.close(dparams, dleaves)


def test_a_single_segment_is_a_dense_layer_whose_first_token_is_read_once_more():
    params, rng = random_hat(1, ["SC"])
    x = rng.normal(size=(5, 4))
    dense, _ = encoder_block(params.blocks[0].segment, x, num_heads=2)
    first, _ = encoder_block(params.blocks[0].cross, dense[:1] + params.blocks[0].places.table[:1], num_heads=2)
    np.testing.assert_allclose(hat(params, x, length=5, num_heads=2)[0], np.concatenate([first, dense[1:]]), rtol=0, atol=1e-14)


def heard(params, segments=3, length=2):
    """Whether the token in the column moves the token in the row: from gradients of one output token at a time."""
    x, size = np.random.default_rng(2).normal(size=(segments * length, 4)), segments * length
    out, backward = hat(params, x, length=length, num_heads=2)
    rows = []
    for token in range(size):
        dout = np.zeros_like(out)
        dout[token] = np.random.default_rng(token).normal(size=4)
        rows.append((backward(dout)[1] != 0).any(axis=1))
    return np.array(rows)


def test_without_cross_segment_layers_segments_know_nothing_of_each_other():
    params, _ = random_hat(3, ["S", "S"])
    np.testing.assert_array_equal(heard(params), np.kron(np.eye(3), np.ones((2, 2))) > 0)


def test_one_pair_of_layers_reaches_first_tokens_and_two_pairs_reach_all():
    once, twice = (heard(random_hat(4, ["SC"] * pairs)[0]) for pairs in (1, 2))
    inside = np.kron(np.eye(3), np.ones((2, 2))) > 0
    inside[::2] = True                                       # the first tokens hear everybody
    np.testing.assert_array_equal(once, inside)
    assert twice.all()


def test_what_first_tokens_heard_is_handed_out_by_the_next_segment_layer_if_there_is_one():
    early, late = (heard(random_hat(5, layout)[0]) for layout in (["SC", "S"], ["S", "SC"]))
    assert early.all() and not late.all() and late[::2].all()


@pytest.mark.parametrize("places", [True, False])
def test_segments_may_change_places_where_no_table_numbers_them(places):
    params, rng = random_hat(6, ["SC", "SC"], places=places)
    x, order = rng.normal(size=(3, 2, 4)), np.array([2, 0, 1])
    out = hat(params, x.reshape(6, 4), length=2, num_heads=2)[0].reshape(3, 2, 4)
    moved = hat(params, x[order].reshape(6, 4), length=2, num_heads=2)[0].reshape(3, 2, 4)
    assert np.allclose(moved, out[order], rtol=0, atol=1e-12) is not places


def test_padding_and_empty_segments_change_nothing():
    params, rng = random_hat(7, ["SC", "SC"])
    x, mask = rng.normal(size=(9, 4)), np.array([1, 1, 0, 1, 1, 1, 0, 0, 0], bool)
    out, backward = hat(params, x, length=3, num_heads=2, mask=mask)
    other = np.where(mask[:, None], x, 100 * rng.normal(size=x.shape))
    np.testing.assert_array_equal(hat(params, other, length=3, num_heads=2, mask=mask)[0][mask], out[mask])
    np.testing.assert_allclose(hat(params, x[:6], length=3, num_heads=2, mask=mask[:6])[0][mask[:6]], out[mask], rtol=0, atol=1e-13)
    dx = backward(rng.normal(size=x.shape) * mask[:, None])[1]
    np.testing.assert_array_equal(dx[~mask], 0)


def test_a_layer_of_another_kind_fits_the_slot():
    def mean_of_all(params, x, *, num_heads, mask=None):
        """x plus a learned multiple of the mean."""
        mean = x.mean(axis=-2, keepdims=True)
        return x + params * mean, lambda dout: (np.sum(dout * mean), dout + params * dout.mean(axis=-2, keepdims=True))

    params = Hat([HatBlock(np.array(0.5), np.array(-2.0), None)])
    x = np.random.default_rng(8).normal(size=(6, 4))
    assert check_gradients(hat, params, x, length=2, num_heads=1, layer=mean_of_all).passed


@pytest.mark.parametrize("wrong", ["adds where it should replace", "keeps what was written over"])
def test_the_check_refuses_a_backward_that(wrong):
    def added(params, x):
        out, backward = hat(params, x, length=2, num_heads=2)
        _, alone_backward = hat(Hat([params.blocks[0]._replace(cross=None, places=None)]), x, length=2, num_heads=2)
        first = (np.arange(len(x)) % 2 == 0)[:, None]

        def both(dout):
            dparams, dx = backward(dout)
            stale = alone_backward(dout * first)[1]          # what would reach x through the rows that were written over
            return dparams, dx + stale if wrong == "adds where it should replace" else alone_backward(dout)[1]

        return out, both

    params, rng = random_hat(9, ["SC"])
    assert not check_gradients(added, params, rng.normal(size=(6, 4))).passed


def test_what_does_not_fit_is_refused_by_name():
    params, rng = random_hat(10, ["SC"])
    x = rng.normal(size=(2, 6, 4))
    with pytest.raises(ValueError, match="length: got 4, wants a number of tokens that divides the 6 positions"):
        hat(params, x, length=4, num_heads=2)
    with pytest.raises(ValueError, match="mask: got a segment whose first token is padding and another is not"):
        hat(params, x, length=3, num_heads=2, mask=np.array([[1, 1, 1, 0, 1, 1]] * 2, bool))
    with pytest.raises(ValueError, match=r"params\.blocks\.0\.places: got 3 rows, wants a row for each of 6 segments"):
        hat(params, x, length=1, num_heads=2)
    with pytest.raises(ValueError, match="layout"):
        init_hat(rng, 4, layout=["CS"], max_segments=3, num_heads=2)
    with pytest.raises(ValueError, match="layout"):
        init_hat(rng, 4, layout=[], max_segments=3, num_heads=2)


@pytest.mark.parity
def test_parity_with_torch_layers_in_the_same_order():
    torch = pytest.importorskip("torch")
    params, rng = random_hat(11, ["SC", "S", "SC"])
    x, dout = rng.normal(size=(2, 2, 9, 4))
    mask = np.array([[1, 1, 1, 1, 1, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1, 1, 0, 0]], bool)
    leaf = torch.tensor(x, requires_grad=True)
    theirs, tables = leaf, []
    for block in params.blocks:
        inside = naive.torch_layer(block.segment, 2)
        theirs = inside(theirs.reshape(6, 3, 4), src_key_padding_mask=torch.tensor(~mask.reshape(6, 3))).reshape(2, 9, 4)
        if block.cross is not None:
            tables.append(torch.tensor(block.places.table, requires_grad=True))
            heads = naive.torch_layer(block.cross, 2)(theirs[:, ::3] + tables[-1])
            theirs = theirs.clone()
            theirs[:, ::3] = heads
    theirs.backward(torch.tensor(dout * mask[..., None]))
    out, backward = hat(params, x, length=3, num_heads=2, mask=mask)
    np.testing.assert_allclose(out[mask], theirs.detach().numpy()[mask], rtol=0, atol=1e-12)
    dparams, dx = backward(dout * mask[..., None])
    np.testing.assert_allclose(dx, leaf.grad.numpy(), rtol=0, atol=1e-11)
    for block, table in zip((dparams.blocks[0], dparams.blocks[2]), tables, strict=True):
        np.testing.assert_allclose(block.places.table, table.grad.numpy(), rtol=0, atol=1e-11)
