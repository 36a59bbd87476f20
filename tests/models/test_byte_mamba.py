"""Mamba over bytes: equal to a loop over positions in both orders, and every byte rests on the whole text; weights of Flax in."""

import autograd
import autograd.numpy as anp
import byte_mamba_loop as naive
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.models.byte_mamba import byte_mamba, byte_mamba_weights, init_byte_mamba, load_byte_mamba, mamba_both_ways
from minitransformers.state_space.selective_scan import selective_scan

SIZES = {"vocabulary": 7, "d_model": 4, "num_layers": 2, "classes": 5, "d_state": 3, "d_conv": 4, "dt_rank": 2}
IDS = np.random.default_rng(1).integers(7, size=(2, 6))


def random_model(seed=0, **changes):
    rng = np.random.default_rng(seed)
    params = init_byte_mamba(rng, **{**SIZES, **changes}, std=0.5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)
    return params


@pytest.mark.parametrize("d_conv", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("positions", [1, 2, 6])
def test_equals_the_loop(d_conv, positions):
    params, ids = random_model(d_conv=d_conv), IDS[:, :positions]
    out, _ = byte_mamba(params, ids=ids)
    np.testing.assert_allclose(out, np.stack([naive.loop(params, text) for text in ids]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings", [{"eps": 0.3}, {"least_step": 0.0}, {"least_step": 0.2}], ids=str)
def test_settings_are_those_of_the_loop(settings):
    params = random_model()
    out, _ = byte_mamba(params, ids=IDS, **settings)
    np.testing.assert_allclose(out, np.stack([naive.loop(params, text, **settings) for text in IDS]), rtol=0, atol=1e-10)


def test_gradients_are_those_of_the_loop():
    params = random_model(2)
    out, backward = byte_mamba(params, ids=IDS)
    dout, leaves = np.random.default_rng(3).normal(size=out.shape), [leaf for _, leaf in trees.leaves(params)]

    def total(values):
        return sum(anp.sum(d * naive.loop(trees.unflatten(params, values), text)) for d, text in zip(dout, IDS, strict=True))

    for (path, own), theirs in zip(trees.leaves(backward(dout)), autograd.grad(total)(leaves), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def test_any_scan_gives_the_same():
    params, calls = random_model(4), []

    def plainly(*arguments):
        calls.append(len(arguments))
        return selective_scan(*arguments)

    fast, fast_backward = byte_mamba(params, ids=IDS)
    plain, plain_backward = byte_mamba(params, ids=IDS, scan=plainly)
    assert calls == [8] * 4                                  # two blocks, both ways
    np.testing.assert_allclose(fast, plain, rtol=0, atol=1e-12)
    dout = np.random.default_rng(5).normal(size=fast.shape)
    trees.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), fast_backward(dout), plain_backward(dout))


def test_every_byte_rests_on_the_whole_text():
    """One block is enough, in both directions; a Mamba with one scan would leave what is before a change as it was."""
    params, text = random_model(6, num_layers=1), IDS[0]
    before, _ = byte_mamba(params, ids=text)
    for t in range(6):
        other = text.copy()
        other[t] = (other[t] + 1) % 7
        assert (np.abs(byte_mamba(params, ids=other)[0] - before).max(axis=1) > 1e-8).all()


def test_with_symmetric_taps_a_text_turned_round_gives_what_it_gave_turned_round():
    params = random_model(7, d_conv=3)
    for block in params.blocks:
        block.mixer.conv.weight[:, 2] = block.mixer.conv.weight[:, 0]
    forth, back = (byte_mamba(params, ids=ids)[0] for ids in (IDS, IDS[:, ::-1]))
    np.testing.assert_allclose(back, forth[:, ::-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("forgotten", ["the way back", "the way forth"])
def test_a_backward_that_forgets_one_of_the_two_ways_is_refused(forgotten):
    params, x = random_model(8, num_layers=1).blocks[0].mixer, np.random.default_rng(9).normal(size=(5, 4))
    calls = []

    def one_sided(*arguments, **settings):
        result, backward = selective_scan(*arguments, **settings)
        calls.append(None)
        silent = (len(calls) % 2 == 0) is (forgotten == "the way back")
        return result, lambda dout: trees.map(np.zeros_like, list(backward(dout))) if silent else backward(dout)

    report = check_gradients(lambda params, x: mamba_both_ways(params, x, scan=one_sided), params, x, second_opinion=False)
    assert not report.passed
    assert check_gradients(lambda params, x: mamba_both_ways(params, x), params, x, second_opinion=False).passed


def test_sizes_are_those_of_the_published_model():
    params = init_byte_mamba(np.random.default_rng(0))
    assert trees.count_parameters(params) == 1_364_035
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}
    assert all(not part.bias.any() for part in (params.blocks[0].mixer.in_proj, params.blocks[0].mixer.x_proj, params.blocks[0].mixer.out_proj))
    assert abs(params.embedding.weight.std() / 0.02 - 1) < 0.1
    assert abs(init_byte_mamba(np.random.default_rng(0), std=0.1).embedding.weight.std() / 0.1 - 1) < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.array([[0, 7]])}, "ids: got ids from 0 to 7"),
        ({"ids": np.array([[-1]])}, "ids: got ids from -1"),
        ({"ids": np.zeros((1, 0), int)}, "ids"),
        ({"ids": np.array([0.0])}, "ids: got float64"),
        ({"eps": -1.0}, "eps: got -1.0"),
        ({"least_step": -1.0}, "least_step: got -1.0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        byte_mamba(random_model(), **{"ids": IDS, **changes})


def test_weights_come_in_from_a_dict_and_from_a_file(tmp_path):
    params = random_model(10)
    np.savez(tmp_path / "weights.npz", **byte_mamba_weights(params))
    for source in (byte_mamba_weights(params), tmp_path / "weights.npz", str(tmp_path / "weights.npz")):
        trees.map(np.testing.assert_array_equal, load_byte_mamba(source), params)


def test_weights_go_out_in_the_shapes_of_flax_and_gradients_with_them():
    params = random_model(11)
    weights = byte_mamba_weights(params)
    taps = weights["CheckpointMambaBlock1D_1__Conv_0__kernel"]
    assert taps.shape == (4, 1, 4) and taps.flags.c_contiguous
    np.testing.assert_array_equal(taps[:, 0], params.blocks[1].mixer.conv.weight.T)
    np.testing.assert_array_equal(weights["CheckpointMambaBlock1D_0__Dense_2__kernel"], params.blocks[0].mixer.dt_proj.weight)
    np.testing.assert_array_equal(weights["Dense_0__kernel"], params.head.weight)
    assert len(weights) == 5 + 2 * 14
    grads = byte_mamba_weights(trees.map(lambda leaf: 2 * leaf, params))
    assert all((grads[name] == 2 * array).all() and grads[name].shape == array.shape for name, array in weights.items())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("Embed_0__embedding"), "missing Embed_0__embedding"),
        (lambda w: w.pop("CheckpointMambaBlock1D_1__D"), "missing CheckpointMambaBlock1D_1__D"),
        (lambda w: w.update(other=np.ones(2)), "unexpected other"),
        (lambda w: w.update(Dense_0__bias=np.ones(4)), r"Dense_0__bias of shape \(4,\), wants"),
        (lambda w: w.update(CheckpointMambaBlock1D_0__Conv_0__kernel=np.ones((4, 2, 4))), r"Conv_0__kernel of shape \(4, 2, 4\), wants"),
        (lambda w: w.clear(), "got no arrays"),
    ],
)
def test_weights_of_something_else_are_refused_by_name(spoil, message):
    weights = byte_mamba_weights(random_model())
    spoil(weights)
    with pytest.raises(ValueError, match=message):
        load_byte_mamba(weights)


def test_what_is_no_archive_is_refused_and_named(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    whole = tmp_path / "whole.npz"
    np.savez(whole, **byte_mamba_weights(random_model()))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:400])
    (tmp_path / "text.npz").write_text("none")
    (tmp_path / "empty.npz").write_bytes(b"")
    with open(tmp_path / "single.npz", "wb") as file:
        np.save(file, np.ones(3))
    for name in ("absent", "objects", "single", "cut", "text", "empty"):
        with pytest.raises(ValueError, match=rf"{name}\.npz: cannot be read as an \.npz archive") as caught:
            load_byte_mamba(tmp_path / f"{name}.npz")
        assert "\n" not in str(caught.value)
