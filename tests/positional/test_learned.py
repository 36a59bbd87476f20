"""Learned positions: rows looked up and added; their gradients gathered, repeats included."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.positional.learned import Learned, init_learned, learned


def textbook_learned(table, x, positions):
    """One batch element and one position at a time."""
    return anp.stack([anp.stack([sequence[i] + table[p] for i, p in enumerate(positions)]) for sequence in x])


def random_call(rng, batch=2, length=5, d_model=3, rows=7):
    shape = (*np.atleast_1d(batch), length, d_model)
    return Learned(rng.normal(size=(rows, d_model))), rng.normal(size=shape), rng.normal(size=shape)


@pytest.mark.parametrize("positions", [[0, 1, 2, 3, 4], [6, 0, 6, 6, 2]])
def test_equals_the_loop_and_its_gradients(positions):
    params, x, dout = random_call(np.random.default_rng(0))
    out, backward = learned(params, x, positions=np.array(positions))
    np.testing.assert_array_equal(out, textbook_learned(params.table, x, positions))
    expected = autograd.grad(lambda table, x: anp.sum(dout * textbook_learned(table, x, positions)), (0, 1))(params.table, x)
    (dtable,), dx = backward(dout)
    np.testing.assert_allclose(dtable, expected[0], rtol=0, atol=1e-14)
    np.testing.assert_array_equal(dx, expected[1])


def test_positions_count_from_zero_unless_told_otherwise():
    params, x, _ = random_call(np.random.default_rng(1))
    np.testing.assert_array_equal(learned(params, x)[0], learned(params, x, positions=np.arange(5))[0])
    np.testing.assert_array_equal(learned(params, x)[0][:, 3:], learned(params, x[:, 3:], positions=np.array([3, 4]))[0])


@pytest.mark.parametrize("shape", [(2, 5), (1, 5), (3, 1, 5), (3, 2, 5)])
def test_texts_of_a_batch_may_have_positions_of_their_own(shape):
    rng = np.random.default_rng(6)
    params, x, dout = random_call(rng, batch=(3, 2))
    positions = rng.integers(7, size=shape)
    out, backward = learned(params, x, positions=positions)
    every, dtable = np.broadcast_to(positions, (3, 2, 5)), np.zeros((7, 3))
    for place in np.ndindex(3, 2):
        own, own_backward = learned(params, x[place], positions=every[place])
        np.testing.assert_array_equal(out[place], own)
        dtable += own_backward(dout[place])[0].table
    np.testing.assert_allclose(backward(dout)[0].table, dtable, rtol=0, atol=1e-14)
    assert check_gradients(learned, params, x, positions=positions).passed


def test_positions_of_more_texts_than_there_are_are_refused():
    params, x, _ = random_call(np.random.default_rng(7))
    with pytest.raises(ValueError, match="positions"):
        learned(params, x, positions=np.zeros((3, 5), int))


def test_rows_that_no_position_names_get_exactly_nothing():
    params, x, dout = random_call(np.random.default_rng(2))
    (dtable,), _ = learned(params, x)[1](dout)
    np.testing.assert_array_equal(dtable[5:], 0)
    assert (dtable[:5] != 0).all()


def test_a_position_that_stands_twice_gets_both_gradients():
    params, x, dout = random_call(np.random.default_rng(3), batch=1)
    (dtable,), _ = learned(params, x, positions=np.array([4, 1, 4, 4, 0]))[1](dout)
    np.testing.assert_allclose(dtable[4], dout[0, 0] + dout[0, 2] + dout[0, 3], atol=1e-15)


def test_swapping_two_rows_and_the_tokens_at_them_swaps_the_outputs():
    params, x, _ = random_call(np.random.default_rng(4))
    swap = np.array([0, 3, 2, 1, 4])
    swapped = Learned(np.concatenate([params.table[swap], params.table[5:]]))
    np.testing.assert_array_equal(learned(swapped, x[:, swap])[0], learned(params, x)[0][:, swap])


def test_a_sequence_longer_than_the_table_is_refused_and_never_wraps():
    params, _, _ = random_call(np.random.default_rng(5))
    with pytest.raises(ValueError, match=r"positions: got 0 to 7, wants 0 to 6, the rows of params.table"):
        learned(params, np.ones((1, 8, 3)))
    with pytest.raises(ValueError, match=r"positions: got numbers from -1 to 0"):
        learned(params, np.ones((1, 2, 3)), positions=np.array([-1, 0]))           # NumPy would read the last row


def test_it_starts_small_like_bert():
    table = init_learned(np.random.default_rng(6), 64, max_positions=500).table
    assert table.shape == (500, 64) and table.dtype == np.float32
    np.testing.assert_allclose([table.mean(), table.std()], [0, 0.02], atol=5e-4)


@pytest.mark.parametrize("size", [0, -1, 1.5, np.nan, np.inf])
@pytest.mark.parametrize("argument", ["d_model", "max_positions"])
def test_sizes_that_are_not_whole_numbers_are_refused_by_name(argument, size):
    with pytest.raises(ValueError, match=f"{argument}: got"):
        init_learned(**{"rng": np.random.default_rng(0), "d_model": 2, "max_positions": 3, argument: size})


def assigned_instead_of_added(params, x, *, positions):
    out, _ = learned(params, x, positions=positions)

    def backward(dout):
        dtable = np.zeros_like(params.table)
        dtable[positions] += dout.sum(0)                     # NumPy writes each repeated row once
        return Learned(dtable), dout

    return out, backward


def test_the_checker_refuses_a_scatter_that_drops_repeats():
    params, x, _ = random_call(np.random.default_rng(7))
    assert check_gradients(assigned_instead_of_added, params, x, positions=np.arange(5)).passed    # no repeats: nobody would notice
    report = check_gradients(assigned_instead_of_added, params, x, positions=np.array([4, 1, 4, 4, 0]))
    assert not report.passed and report.worst.path == "params.table" and report.worst.index[0] == 4


@pytest.mark.parity
def test_parity_with_torch_embedding():
    torch = pytest.importorskip("torch")
    params, x, dout = random_call(np.random.default_rng(8))
    positions = np.array([6, 1, 6, 0, 2])
    table = torch.tensor(params.table, requires_grad=True)
    theirs = torch.tensor(x) + torch.nn.functional.embedding(torch.tensor(positions), table)
    theirs.backward(torch.tensor(dout))
    out, backward = learned(params, x, positions=positions)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-15)
    np.testing.assert_allclose(backward(dout)[0].table, table.grad.numpy(), rtol=0, atol=1e-14)


@pytest.mark.parity
def test_parity_with_hugging_face_gpt2():
    # With no layers the model is: token row + position row, then the final norm.
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from minitransformers.norms.layer_norm import LayerNorm, layer_norm

    config = transformers.GPT2Config(vocab_size=11, n_positions=7, n_embd=4, n_layer=0, n_head=2)
    model = transformers.GPT2Model(config).double().eval()
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    ids, dout = np.array([[3, 1, 4, 1, 5]]), np.random.default_rng(9).normal(size=(1, 5, 4))
    theirs = model(torch.tensor(ids)).last_hidden_state
    theirs.backward(torch.tensor(dout))
    embedded, embedded_backward = learned(Learned(state["wpe.weight"]), state["wte.weight"][ids])
    out, norm_backward = layer_norm(LayerNorm(state["ln_f.weight"], state["ln_f.bias"]), embedded)
    (dtable,), _ = embedded_backward(norm_backward(dout)[1])
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dtable, model.wpe.weight.grad.numpy(), rtol=0, atol=1e-9)
