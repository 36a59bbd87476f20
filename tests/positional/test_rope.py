"""RoPE in all its forms: one matrix for each pair, the relative dot product, the two layouts, and far, negative and real positions."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.positional.rope import rope
from minitransformers.positional.rope_fast import _tables, rope_fast
from minitransformers.positional.rope_interleaved import _turns, rope_interleaved
from minitransformers.positional.rope_linear import rope_linear
from minitransformers.positional.rope_ntk import rope_ntk
from minitransformers.positional.rope_partial import rope_partial

LAYOUTS = [rope, rope_fast, rope_interleaved]
SCALED = [partial(rope_linear, factor=3.0), partial(rope_ntk, factor=3.0)]


def pair(m, rotary_dim, layout):
    return (2 * m, 2 * m + 1) if layout is rope_interleaved else (m, m + rotary_dim // 2)


def turning_matrix(position, d_head, layout=rope, base=10_000.0, rotary_dim=None):
    """The whole rotation of one position as a dense matrix, as eq. 15 of the paper draws it."""
    rotary_dim = rotary_dim or d_head
    matrix = np.eye(d_head)
    for m in range(rotary_dim // 2):
        angle = position * base ** (-2 * m / rotary_dim)
        a, b = pair(m, rotary_dim, layout)
        matrix[a, a] = matrix[b, b] = np.cos(angle)
        matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def textbook_rope(x, positions, **config):
    """A dense matrix for each position."""
    return anp.stack([anp.dot(x[..., i, :], turning_matrix(p, x.shape[-1], **config).T) for i, p in enumerate(positions)], axis=-2)


def on_a_part(turn, rotary_dim):
    return turn if rotary_dim is None else partial(rope_partial, rotary_dim=rotary_dim, turn=turn)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rotary_dim", [None, 2, 4])
@pytest.mark.parametrize("positions", [[0, 1, 2], [7, -3, 7], [0.5, 1000.25, 0.0]])
def test_equals_dense_matrices_and_their_gradient(layout, rotary_dim, positions):
    rng = np.random.default_rng(0)
    x, dout = rng.normal(size=(2, 5, 3, 6)), rng.normal(size=(2, 5, 3, 6))
    out, backward = on_a_part(partial(layout, base=100.0), rotary_dim)(x, positions=np.array(positions))
    config = {"layout": layout, "rotary_dim": rotary_dim, "base": 100.0}
    np.testing.assert_allclose(out, textbook_rope(x, positions, **config), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda x: anp.sum(dout * textbook_rope(x, positions, **config)))(x)
    np.testing.assert_allclose(backward(dout), expected, rtol=0, atol=1e-12)


POSITIONS = {
    "default": None,
    "far": np.arange(5) + 123_457,
    "negative": np.array([3, -1, -1000, 0, 3]),
    "real": np.array([0.5, 1000.25, -7.125, 0.0, 1e-3]),
    "single": np.array([0.3, 0.1, 2000.7, -0.1, 5.0], np.float32),
    "small": np.array([3, 0, 127, 1, 2], np.int8),
    "strided": np.arange(20)[::-4],
    "repeated": np.broadcast_to(np.array([6]), (5,)),
}


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_fast_form_equals_the_plain_one_at_all_positions_and_in_any_memory_layout(name, dtype):
    rng = np.random.default_rng(16)
    x, dout = (rng.normal(size=(2, 5, 3, 12)).astype(dtype)[..., ::2].swapaxes(1, 2) for _ in range(2))
    config = {"positions": POSITIONS[name], "base": 500.0}
    (fast, fast_backward), (plain, plain_backward) = rope_fast(x, **config), rope(x, **config)
    atol = 1e-12 if dtype == np.float64 else 1e-6
    np.testing.assert_allclose(fast, plain, rtol=0, atol=atol)
    np.testing.assert_allclose(fast_backward(dout), plain_backward(dout), rtol=0, atol=atol)
    assert fast.dtype == plain.dtype == fast_backward(dout).dtype == plain_backward(dout).dtype == dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offset", [0, 1, 10, 1000])
def test_the_dot_product_knows_the_offset_and_not_the_place(layout, offset):
    rng = np.random.default_rng(1)
    query, key = rng.normal(size=(2, 1, 16))
    at = lambda x, p: layout(x, positions=np.array([p]))[0][0]  # noqa: E731
    scores = [at(query, p + offset) @ at(key, p) for p in (0, 3, 500, 100_000)]
    np.testing.assert_allclose(scores, scores[0], rtol=0, atol=1e-9)
    assert offset == 0 or abs(scores[0] - query[0] @ key[0]) > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lengths_are_kept_and_position_zero_is_the_identity(layout):
    x = np.random.default_rng(2).normal(size=(2, 5, 8))
    out, _ = layout(x)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-14)
    np.testing.assert_array_equal(out[:, 0], x[:, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_turns_add_up_and_backward_turns_back(layout):
    rng = np.random.default_rng(3)
    x, p, q = rng.normal(size=(2, 5, 8)), rng.integers(100, size=5), rng.integers(100, size=5)
    once, backward = layout(x, positions=p)
    np.testing.assert_allclose(layout(once, positions=q)[0], layout(x, positions=p + q)[0], atol=1e-12)
    np.testing.assert_allclose(backward(once), x, atol=1e-14)
    np.testing.assert_allclose(layout(once, positions=-p)[0], x, atol=1e-14)


@pytest.mark.parametrize("half", [rope, rope_fast])
def test_the_layouts_are_one_permutation_apart(half):
    x, dout = np.random.default_rng(4).normal(size=(2, 2, 5, 8))
    to_half, positions = np.array([0, 2, 4, 6, 1, 3, 5, 7]), np.array([-3, 0, 4.5, 100, 7])
    (out, backward), (interleaved, interleaved_backward) = half(x[..., to_half], positions=positions), rope_interleaved(x, positions=positions)
    np.testing.assert_allclose(out, interleaved[..., to_half], rtol=0, atol=1e-14)
    np.testing.assert_allclose(backward(dout[..., to_half]), interleaved_backward(dout)[..., to_half], rtol=0, atol=1e-14)
    assert np.abs(half(x, positions=positions)[0] - interleaved).max() > 0.1          # without it the layouts disagree


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_beyond_rotary_dim_pass_untouched(layout):
    x = np.random.default_rng(5).normal(size=(2, 5, 7))                              # an odd width, an even turned part
    out, backward = rope_partial(x, rotary_dim=4, turn=layout)
    np.testing.assert_array_equal(out[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(backward(x)[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(out[..., :4], layout(x[..., :4])[0])


@pytest.mark.parametrize("turn", [*LAYOUTS, *SCALED, partial(rope_partial, rotary_dim=2)])
def test_positions_count_from_zero_unless_told_otherwise(turn):
    x = np.random.default_rng(6).normal(size=(2, 5, 4))
    np.testing.assert_array_equal(turn(x)[0], turn(x, positions=np.arange(5))[0])
    np.testing.assert_array_equal(turn(x)[0][:, 3:], turn(x[:, 3:], positions=np.array([3, 4]))[0])


def frequencies(d, turn=rope):
    """The angle by which position 1 turns each pair; all pairs start at (1, 0)."""
    turned = turn(np.repeat([[1.0, 0.0]], d // 2, axis=1), positions=np.array([1]))[0][0]
    return np.arctan2(turned[d // 2 :], turned[: d // 2])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rotary_dim", [None, 4])
@pytest.mark.parametrize("scaling", [rope_linear, rope_ntk])
def test_scaling_equals_dense_matrices_and_their_gradient(layout, rotary_dim, scaling):
    rng = np.random.default_rng(12)
    x, dout, positions, factor = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 6)), np.array([7, -3, 40]), 2.5
    out, backward = on_a_part(partial(scaling, factor=factor, base=100.0, turn=layout), rotary_dim)(x, positions=positions)
    config = {"layout": layout, "rotary_dim": rotary_dim, "base": 100.0}
    if scaling is rope_ntk:
        d = rotary_dim or 6
        config["base"] *= factor ** (d / (d - 2))
    places = positions / factor if scaling is rope_linear else positions
    np.testing.assert_allclose(out, textbook_rope(x, places, **config), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda x: anp.sum(dout * textbook_rope(x, places, **config)))(x)
    np.testing.assert_allclose(backward(dout), expected, rtol=0, atol=1e-12)


def test_linear_scaling_brings_every_angle_back_into_the_range_of_training():
    x = np.random.default_rng(13).normal(size=(9, 8))
    out, _ = rope_linear(x, factor=4.0)
    np.testing.assert_allclose(out[::4], rope(x[::4], positions=np.array([0, 1, 2]))[0], rtol=0, atol=1e-15)


def test_linear_scaling_divides_in_float64_whatever_the_positions_are():
    x, far = np.random.default_rng(17).normal(size=(3, 8)), np.array([99_999, 100_003, 7])
    exact, _ = rope_linear(x, positions=far, factor=3.0)
    np.testing.assert_array_equal(rope_linear(x, positions=far.astype(np.float32), factor=3.0)[0], exact)


def test_ntk_scaling_slows_the_last_pair_by_the_factor_and_the_first_not_at_all():
    d, s = 16, 4.0
    slower = frequencies(d) / frequencies(d, partial(rope_ntk, factor=s))
    np.testing.assert_allclose(slower, s ** (np.arange(d // 2) / (d // 2 - 1)), rtol=1e-12)
    assert slower[0] == 1


@pytest.mark.parametrize("scaling", [rope_linear, rope_ntk])
def test_a_factor_of_one_changes_no_bit(scaling):
    x = np.random.default_rng(14).normal(size=(2, 5, 8))
    np.testing.assert_array_equal(scaling(x, factor=1.0)[0], rope_fast(x)[0])


@pytest.mark.parametrize("scaled", SCALED)
def test_scaled_scores_still_know_the_offset_and_not_the_place(scaled):
    query, key = np.random.default_rng(15).normal(size=(2, 1, 8))
    at = lambda x, p: scaled(x, positions=np.array([p]))[0][0]  # noqa: E731
    np.testing.assert_allclose([at(query, p + 7) @ at(key, p) for p in (3, 500, 100_000)], at(query, 7) @ at(key, 0), atol=1e-9)


def test_mean_cosine_decays_with_the_distance_as_an_envelope():
    # For equal query and key the score is the mean of cos(k frequency): figures for d_head = 64.
    x = np.ones((1, 64)) / 8
    for distance, expected in ((0, 1), (1, 0.966), (4, 0.748), (16, 0.605), (64, 0.435), (256, 0.354), (1024, 0.263)):
        np.testing.assert_allclose(rope(x, positions=np.array([distance]))[0][0] @ x[0], expected, atol=5e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_keeps_the_exact_angle_of_a_far_position(layout):
    x = np.random.default_rng(7).normal(size=(1, 8))
    far = np.array([123_457])
    np.testing.assert_allclose(layout(x.astype(np.float32), positions=far)[0], layout(x, positions=far)[0], atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_float_stays_what_it_is_in_any_memory_layout(layout, dtype):
    x = np.random.default_rng(8).normal(size=(2, 5, 3, 8)).astype(dtype)
    heads = np.swapaxes(x, 1, 2)                                                     # how attention hands over its heads
    out, backward = layout(heads)
    assert out.dtype == dtype and backward(heads).dtype == dtype
    np.testing.assert_array_equal(out, layout(heads.copy())[0])
    np.testing.assert_array_equal(out, layout(np.asfortranarray(heads))[0])


def test_the_shared_tables_cannot_be_written_to():
    call = np.array([5.0]).tobytes(), (1,), 4, 10_000.0, np.dtype(np.float32)
    for table in (*_tables(*call), _turns(*call)):
        with pytest.raises(ValueError, match="read-only"):
            table[:] = 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_near_overflow_stays_finite(layout):
    x = np.full((2, 4), 1e38, np.float32)
    out, backward = layout(x)
    assert np.isfinite(out).all() and np.isfinite(backward(x)).all()


def turned_the_same_way(x, *, layout):
    return layout(x)[0], lambda dout: layout(dout)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_checker_refuses_a_backward_that_turns_the_same_way(layout):
    report = check_gradients(turned_the_same_way, np.random.default_rng(9).normal(size=(3, 6)), layout=layout)
    assert not report.passed and report.error > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize("half", [rope, rope_fast])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_parity_with_hugging_face_half_split(family, half):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import importlib

    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    rng = np.random.default_rng(10)
    query, key, dquery, dkey = rng.normal(size=(4, 2, 3, 5, 8))
    angles = np.outer(np.arange(5), 10_000.0 ** (-np.arange(4) / 4))
    cos, sin = (torch.tensor(np.concatenate([f(angles)] * 2, -1))[None] for f in (np.cos, np.sin))
    their_query, their_key = (torch.tensor(a, requires_grad=True) for a in (query, key))
    theirs = module.apply_rotary_pos_emb(their_query, their_key, cos, sin)
    torch.autograd.backward(theirs, [torch.tensor(dquery), torch.tensor(dkey)])
    for ours, dours, out, leaf in ((query, dquery, theirs[0], their_query), (key, dkey, theirs[1], their_key)):
        turned, backward = half(ours)
        np.testing.assert_allclose(turned, out.detach().numpy(), rtol=0, atol=1e-14)
        np.testing.assert_allclose(backward(dours), leaf.grad.numpy(), rtol=0, atol=1e-14)


@pytest.mark.parity
def test_parity_with_hugging_face_gpt_neox_on_a_part_of_the_features():
    torch = pytest.importorskip("torch")
    neox = pytest.importorskip("transformers.models.gpt_neox.modeling_gpt_neox")
    x, dout = np.random.default_rng(18).normal(size=(2, 2, 3, 5, 8))
    angles = np.outer(np.arange(5), 10_000.0 ** (-np.arange(2) / 2))                 # of the first four features
    cos, sin = (torch.tensor(np.concatenate([f(angles)] * 2, -1))[None] for f in (np.cos, np.sin))
    leaf = torch.tensor(x, requires_grad=True)
    theirs, _ = neox.apply_rotary_pos_emb(leaf, leaf.detach(), cos, sin)
    theirs.backward(torch.tensor(dout))
    out, backward = rope_partial(x, rotary_dim=4)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(backward(dout), leaf.grad.numpy(), rtol=0, atol=1e-14)


@pytest.mark.parity
def test_parity_with_the_frequencies_of_hugging_face_llama():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(hidden_size=32, num_attention_heads=4, rope_theta=500_000.0)
    theirs = LlamaRotaryEmbedding(config).inv_freq.numpy()
    unit = np.concatenate([np.ones(4), np.zeros(4)])[None]                           # every pair at (1, 0)
    turned = rope(unit, positions=np.array([1]), base=500_000.0)[0][0]
    np.testing.assert_allclose(np.arctan2(turned[4:], turned[:4]), theirs, rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("length", [3, 16, 50])
@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_parity_with_the_scaled_frequencies_of_hugging_face(kind, length):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    d, trained, s = 8, 16, 3.0
    scaling = {"rope_type": kind, "rope_theta": 10_000.0, "factor": s}
    config = transformers.LlamaConfig(hidden_size=4 * d, num_attention_heads=4, max_position_embeddings=trained, rope_parameters=scaling)
    if kind == "linear":
        ours = frequencies(d, partial(rope_linear, factor=s))
        theirs = LlamaRotaryEmbedding(config).inv_freq
    else:
        ours = frequencies(d, partial(rope_ntk, factor=s * max(length, trained) / trained - (s - 1)))
        theirs, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, device=None, seq_len=length)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-6)                       # theirs are float32


@pytest.mark.parity
def test_parity_with_hugging_face_gptj_interleaved():
    torch = pytest.importorskip("torch")
    gptj = pytest.importorskip("transformers.models.gptj.modeling_gptj")
    rng = np.random.default_rng(11)
    x, dout = rng.normal(size=(2, 2, 5, 3, 8))                                        # GPT-J: (batch, length, heads, d)
    angles = np.outer(np.arange(5), 10_000.0 ** (-np.arange(4) / 4))
    leaf = torch.tensor(x, requires_grad=True)
    sin, cos = torch.tensor(np.sin(angles))[None], torch.tensor(np.cos(angles))[None]
    theirs = gptj.apply_rotary_pos_emb(leaf, sin, cos)
    theirs.backward(torch.tensor(dout))
    out, backward = rope_interleaved(x.swapaxes(1, 2))
    np.testing.assert_allclose(out.swapaxes(1, 2), theirs.detach().numpy(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(backward(dout.swapaxes(1, 2)).swapaxes(1, 2), leaf.grad.numpy(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("turn", [rope, rope_fast, rope_interleaved, partial(rope_linear, factor=2.0), partial(rope_ntk, factor=2.0), partial(rope_partial, rotary_dim=4)])
def test_texts_may_start_at_different_places(turn):
    x, rows = np.random.default_rng(0).normal(size=(2, 3, 5, 8)), np.array([[0, 1, 2, 3, 4], [-2, -1, 0, 1, 2]])
    out, backward = turn(x, positions=rows[:, None])
    alone = [turn(text, positions=row) for text, row in zip(x, rows, strict=True)]
    np.testing.assert_array_equal(out, [each for each, _ in alone])
    np.testing.assert_array_equal(backward(x), [each_backward(text) for text, (_, each_backward) in zip(x, alone, strict=True)])
    assert check_gradients(turn, x, positions=rows[:, None]).passed
    with pytest.raises(ValueError, match=r"positions: got shape \(2, 5\)"):
        turn(x, positions=rows)
    with pytest.raises(ValueError, match=r"positions: got shape \(2, 1, 5\)"):
        turn(x[0, 0], positions=rows[:, None])
