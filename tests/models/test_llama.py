"""Llama as itself: equal to its formula and to Hugging Face's Llama and Mistral; windows, caches, sizes; weights in and out."""

import inspect
import re
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.attention.masks import padding_mask
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import Embedding
from minitransformers.efficient.rolling_cache import rolling_cache
from minitransformers.foundation.safetensors import write_safetensors
from minitransformers.models import llama as module
from minitransformers.models.configuration import Configuration
from minitransformers.models.decoding import generate, without_cache
from minitransformers.models.llama import (
    LLAMA_2_7B,
    LLAMA_3_2_1B,
    LLAMA_3_8B,
    LLAMA_7B,
    MISTRAL_7B,
    SMOLLM2_135M,
    init_llama,
    llama,
    llama_step,
    llama_weights,
    load_llama,
)
from minitransformers.positional.rope_fast import rope_fast
from minitransformers.positional.rope_interleaved import rope_interleaved

SIZES = {"vocabulary": 13, "d_model": 8, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_hidden": 5}
SLOW = partial(rope_fast, base=30.0)


def random_model(seed=0, **changes):
    rng = np.random.default_rng(seed)
    params = init_llama(rng, **{**SIZES, **changes}, std=0.4, dtype=np.float64)
    return trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params)


IDS = np.random.default_rng(1).integers(13, size=(3, 7))


def textbook(params, ids, num_heads, *, base=30.0, window=None, eps=1e-5):
    """Llama as a formula: one text, one head and one query at a time, rotations as complex numbers, heads by their number."""

    def norm(p, x):
        return p.gain * x / anp.sqrt(anp.mean(x * x, axis=-1, keepdims=True) + eps)

    def turned(rows):
        half = rows.shape[1] // 2
        angles = np.outer(np.arange(len(rows)), base ** (-np.arange(half) / half))
        cos, sin, a, b = np.cos(angles), np.sin(angles), rows[:, :half], rows[:, half:]
        return anp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)

    def attention(p, x):
        q, k, v = (x @ part.weight for part in p[:3])
        d = q.shape[1] // num_heads
        group, heads = num_heads * d // k.shape[1], []
        for h in range(num_heads):
            own, shared = slice(h * d, (h + 1) * d), slice(h // group * d, (h // group + 1) * d)
            query, key, value, rows = turned(q[:, own]), turned(k[:, shared]), v[:, shared], []
            for i in range(len(x)):
                first = 0 if window is None else max(0, i - window + 1)
                e = anp.exp(key[first : i + 1] @ query[i] / anp.sqrt(d))
                rows.append(e @ value[first : i + 1] / anp.sum(e))
            heads.append(anp.stack(rows))
        return anp.concatenate(heads, axis=1) @ p.output.weight

    def swiglu(p, x):
        gate = x @ p.gate.weight
        return (gate / (1 + anp.exp(-gate)) * (x @ p.up.weight)) @ p.down.weight

    out = []
    for text in ids:
        x = params.embedding.weight[text]
        for b in params.blocks:
            x = x + attention(b.attention, norm(b.attention_norm, x))
            x = x + swiglu(b.feed_forward, norm(b.feed_forward_norm, x))
        out.append(norm(params.norm, x) @ (params.embedding.weight.T if params.head is None else params.head.weight))
    return anp.stack(out)


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
@pytest.mark.parametrize("window", [None, 3])
def test_equals_the_formula_in_outputs_and_gradients(tied, window):
    params, dlogits = random_model(tied=tied), np.random.default_rng(2).normal(size=(3, 7, 13))
    logits, backward = llama(params, ids=IDS, num_heads=4, rope=SLOW, window=window)
    np.testing.assert_allclose(logits, textbook(params, IDS, 4, window=window), rtol=0, atol=1e-10)
    values = [leaf for _, leaf in trees.leaves(params)]
    expected = autograd.grad(lambda own: anp.sum(dlogits * textbook(trees.unflatten(params, own), IDS, 4, window=window)))(values)
    for (path, own), theirs in zip(trees.leaves(backward(dlogits)), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_eps_is_that_of_every_norm(eps):
    params = random_model()
    logits, _ = llama(params, ids=IDS, num_heads=4, rope=SLOW, eps=eps)
    np.testing.assert_allclose(logits, textbook(params, IDS, 4, eps=eps), rtol=0, atol=1e-10)
    np.testing.assert_allclose(llama_step(params, IDS, None, num_heads=4, rope=SLOW, eps=eps)[0], logits, rtol=0, atol=1e-12)


def test_gradients_of_a_head_of_its_own_are_right():
    params = random_model(3, d_model=4, num_heads=2, num_kv_heads=1, vocabulary=5, num_layers=1)
    report = check_gradients(llama, params, ids=np.array([[1, 4, 1], [0, 2, 2]]), num_heads=2, rope=SLOW, second_opinion=False)
    assert report.passed, str(report)


@pytest.mark.parametrize("forgotten", ["as the table that is read", "as the head"])
def test_a_tied_table_that_forgets_one_of_its_two_gradients_is_refused(forgotten):
    params = random_model(4, d_model=4, num_heads=2, num_kv_heads=1, vocabulary=5, num_layers=1, tied=True)
    apart = params._replace(head=module.Linear(params.embedding.weight.T.copy(), None))

    def forgetful(params, *, ids):
        logits, _ = llama(params, ids=ids, num_heads=2)
        _, separate = llama(apart, ids=ids, num_heads=2)

        def wrong(dlogits):
            parts = separate(dlogits)
            part = parts.embedding.weight if forgotten == "as the head" else parts.head.weight.T
            return parts._replace(embedding=Embedding(part), head=None)

        return logits, wrong

    report = check_gradients(forgetful, params, ids=np.array([[1, 4, 1]]), second_opinion=False)
    assert not report.passed
    assert report.worst.path == "params.embedding.weight"


def test_a_tied_head_is_the_sum_of_both_uses():
    params, dlogits = random_model(5, tied=True), np.random.default_rng(6).normal(size=(3, 7, 13))
    apart = params._replace(head=module.Linear(params.embedding.weight.T.copy(), None))
    (logits, backward), (same, separate) = (llama(p, ids=IDS, num_heads=4) for p in (params, apart))
    np.testing.assert_allclose(logits, same, rtol=0, atol=1e-13)
    tied, both = backward(dlogits), separate(dlogits)
    assert tied.head is None
    np.testing.assert_allclose(tied.embedding.weight, both.embedding.weight + both.head.weight.T, rtol=0, atol=1e-12)
    trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), tied.blocks, both.blocks)


def test_gradients_flow_through_a_window_and_a_mask():
    params = random_model(7, d_model=4, num_heads=2, num_kv_heads=1, vocabulary=5, num_layers=1)
    mask = np.random.default_rng(8).random((2, 2, 4, 4)) < 0.7
    ids = np.array([[1, 4, 1, 3], [0, 2, 2, 1]])
    report = check_gradients(llama, params, ids=ids, num_heads=2, window=2, mask=mask, second_opinion=False)
    assert report.passed, str(report)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_windows_reach_grows_with_depth(layers):
    """Layers times (window - 1), and the token itself: the stated k W is one too many a layer."""
    params, window, positions = random_model(9, num_layers=layers), 3, 9
    ids = np.random.default_rng(10).integers(13, size=(1, positions))
    reached = []
    for t in range(positions):
        other = ids.copy()
        other[0, t] = (other[0, t] + 1) % 13
        last = (llama(params, ids=a, num_heads=4, window=window)[0][0, -1] for a in (ids, other))
        reached.append(not np.array_equal(*last))
    assert reached == [positions - 1 - t <= layers * (window - 1) for t in range(positions)]


def test_a_window_as_long_as_the_text_changes_nothing():
    params = random_model(11)
    whole, _ = llama(params, ids=IDS, num_heads=4)
    np.testing.assert_allclose(llama(params, ids=IDS, num_heads=4, window=7)[0], whole, rtol=0, atol=1e-12)
    assert np.abs(llama(params, ids=IDS, num_heads=4, window=6)[0] - whole).max() > 1e-3


def test_only_distances_count():
    """Moved along by four, a text gives the same logits: nothing in the model knows an absolute position."""
    params = random_model(12)

    def moved(x, *, positions=None):
        return SLOW(x, positions=np.arange(x.shape[-2]) + 4)

    logits = (llama(params, ids=IDS, num_heads=4, rope=rope)[0] for rope in (SLOW, moved))
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-12)


def test_neighbouring_pairs_are_the_same_model_with_features_in_another_order():
    """How the authors' files and GGUF pair features: both projections have their columns reordered head by head."""
    params, d_head = random_model(13, d_model=16), 4
    order = [0, 2, 1, 3]                                     # m and m + d_head / 2 become neighbours

    def reordered(part):
        return part._replace(weight=part.weight.reshape(16, -1, d_head)[..., order].reshape(part.weight.shape))

    blocks = [b._replace(attention=b.attention._replace(query=reordered(b.attention.query), key=reordered(b.attention.key))) for b in params.blocks]
    expected, _ = llama(params, ids=IDS, num_heads=4, rope=SLOW)
    logits, _ = llama(params._replace(blocks=blocks), ids=IDS, num_heads=4, rope=partial(rope_interleaved, base=30.0))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)


def test_it_starts_undecided():
    params = init_llama(np.random.default_rng(14), vocabulary=11, d_model=64, num_layers=4, num_heads=4)
    assert params.blocks[0].feed_forward.gate.weight.shape == (64, 256)
    assert abs(params.blocks[1].attention.output.weight.std() / 0.02 - 1) < 0.1
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}
    ids, targets = np.random.default_rng(15).integers(11, size=(2, 4, 64))
    loss, _ = cross_entropy(llama(params, ids=ids, num_heads=4)[0], targets=targets)
    assert abs(float(loss) - np.log(11)) < 0.05


def test_the_first_llamas_hidden_width_is_the_default():
    assert 256 * -(-(8 * 4096 // 3) // 256) == 11_008
    assert init_llama(np.random.default_rng(0), vocabulary=1, d_model=97, num_layers=1, num_heads=1).blocks[0].feed_forward.up.weight.shape == (97, 512)


def count(vocabulary, d_model, num_layers, num_heads, num_kv_heads, d_hidden, tied=False, std=None):
    d_head = d_model // num_heads
    block = 2 * d_model + 2 * d_model * num_heads * d_head + 2 * d_model * num_kv_heads * d_head + 3 * d_model * d_hidden
    return vocabulary * d_model * (1 if tied else 2) + num_layers * block + d_model


PUBLISHED = {
    "LLAMA_7B": (LLAMA_7B, 6_738_415_616),
    "LLAMA_2_7B": (LLAMA_2_7B, 6_738_415_616),
    "LLAMA_3_8B": (LLAMA_3_8B, 8_030_261_248),
    "LLAMA_3_2_1B": (LLAMA_3_2_1B, 1_235_814_400),
    "MISTRAL_7B": (MISTRAL_7B, 7_241_732_096),
    "SMOLLM2_135M": (SMOLLM2_135M, 134_515_008),
}


@pytest.mark.parametrize("tied", [False, True])
def test_the_formula_of_the_count_is_that_of_the_parameters(tied):
    assert trees.count_parameters(random_model(tied=tied)) == count(**SIZES, tied=tied)


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_configurations_have_the_published_number_of_parameters(name):
    configuration, parameters = PUBLISHED[name]
    assert count(**configuration.sizes) == parameters


def test_every_named_configuration_is_held_to_its_count_and_explained():
    named = {name: found for name, found in vars(module).items() if isinstance(found, Configuration)}
    assert named == {name: configuration for name, (configuration, _) in PUBLISHED.items()}
    rows = [line.split() for line in inspect.getdoc(inspect.unwrap(llama)).splitlines() if re.match(r"\s+[A-Z0-9_]{6,}\s", line)]
    assert [row[0] for row in rows] == list(named)
    for name, layers, d_model, heads, of_keys, d_hidden, vocabulary, *head, base, window, parameters in rows:
        sizes, settings = named[name]
        shown = dict(zip(SIZES, map(int, (vocabulary, d_model, layers, heads, of_keys, d_hidden)), strict=True))
        assert shown == {size: sizes[size] for size in SIZES}
        assert " ".join(head) == ("tied" if sizes.get("tied") else "its own")
        assert settings["num_heads"] == sizes["num_heads"]
        assert float(base) == settings.get("rope", partial(rope_fast, base=1e4)).keywords["base"]
        assert window == str(settings.get("window", "-"))
        assert int(parameters.replace(",", "")) == PUBLISHED[name][1]


def test_a_named_configuration_runs_at_a_smaller_size():
    """All that a configuration says is understood, by the model and by its step."""
    for configuration, _ in PUBLISHED.values():
        heads, of_keys = configuration.sizes["num_heads"], configuration.sizes["num_kv_heads"]
        small = {**configuration.sizes, "vocabulary": 7, "d_model": 4 * heads, "num_layers": 1, "d_hidden": 3}
        params = init_llama(np.random.default_rng(0), **small)
        assert params.blocks[0].attention.key.weight.shape[1] == 4 * of_keys
        ids = np.array([[1, 6, 2]])
        logits, _ = llama(params, ids=ids, **configuration.settings)
        np.testing.assert_allclose(llama_step(params, ids, None, **configuration.settings)[0], logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pieces", [(1,) * 7, (4, 1, 2), (7,)])
@pytest.mark.parametrize("settings", [{}, {"window": 3}, {"window": 1}, {"window": 40}], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_step_by_step_is_the_whole_pass(pieces, settings, tied):
    params = random_model(16, tied=tied)
    whole, _ = llama(params, ids=IDS, num_heads=4, rope=SLOW, **settings)
    state, logits, start = None, [], 0
    for size in pieces:
        part, state = llama_step(params, IDS[:, start : start + size], state, num_heads=4, rope=SLOW, **settings)
        logits.append(part)
        start += size
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, rtol=0, atol=1e-10)
    assert state.length == 7


def test_with_a_window_the_cache_stops_growing():
    """Three windows long, and then some: decoded equals read at once, what is kept is what Mistral's ring keeps, and no more is held."""
    params, window = random_model(17), 4
    ids = np.random.default_rng(18).integers(13, size=(2, 3 * window + 2))
    state, logits, sizes, ring, held = None, [], [], None, []
    for t in range(ids.shape[1]):
        part, state = llama_step(params, ids[:, t : t + 1], state, num_heads=4, rope=SLOW, window=window)
        logits.append(part)
        sizes.append(state.bytes)
        cache = state.blocks[1]
        held.append(cache.room.capacity)
        ring = rolling_cache(ring, cache.keys[..., -1:, :], cache.values[..., -1:, :], window=window)
        kept = cache.keys.shape[-2]
        for own, theirs in zip(cache[:2], ring.in_order(), strict=True):
            np.testing.assert_array_equal(own, theirs[..., -kept:, :])
        assert kept == min(t + 1, window)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), llama(params, ids=ids, num_heads=4, rope=SLOW, window=window)[0], rtol=0, atol=1e-10)
    one = 2 * 2 * 2 * 2 * 2 * 8                              # layers, keys and values, texts, heads of keys, d_head, bytes a number
    assert sizes == [one * min(t + 1, window) for t in range(len(sizes))]
    assert max(held) <= 16


def test_mistrals_cache_is_as_large_as_the_sheet_says():
    sizes, settings = MISTRAL_7B
    per_head = sizes["d_model"] // sizes["num_heads"]
    assert 2 * sizes["num_layers"] * sizes["num_kv_heads"] * per_head * settings["window"] * 2 == 512 * 2**20  # float16


def test_it_writes_the_same_text_with_and_without_a_cache():
    params, settings = random_model(19), {"prompt_ids": np.array([1, 2, 3]), "num_tokens": 25, "vocabulary_size": 13}
    for window in (None, 4):
        model = {"num_heads": 4, "rope": SLOW, "window": window}
        cached = list(generate(partial(llama_step, params, **model), rng=np.random.default_rng(0), **settings))
        plain = list(generate(without_cache(partial(llama, params, **model)), rng=np.random.default_rng(0), **settings))
        assert cached == plain and len(cached) == 25


def test_a_state_can_be_continued_in_two_ways():
    params = random_model(20)
    _, state = llama_step(params, IDS[:, :4], None, num_heads=4)
    for tail in (IDS[:, 4:], IDS[:, ::-1][:, 4:]):
        logits, _ = llama_step(params, tail, state, num_heads=4)
        whole, _ = llama(params, ids=np.concatenate([IDS[:, :4], tail], axis=1), num_heads=4)
        np.testing.assert_allclose(logits, whole[:, 4:], rtol=0, atol=1e-10)


def test_a_step_copies_no_weights():
    """Its products take the weights as they lie, the tied head as well: what it allocates does not grow with them."""
    import tracemalloc

    params = init_llama(np.random.default_rng(0), vocabulary=4000, d_model=64, num_layers=1, num_heads=2, d_hidden=2000, tied=True)
    _, state = llama_step(params, np.array([[1, 2]]), None, num_heads=2)
    tracemalloc.start()
    try:
        llama_step(params, np.array([[3]]), state, num_heads=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.4 * params.blocks[0].feed_forward.up.weight.nbytes < params.embedding.weight.nbytes


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("window", [None, 3])
def test_padded_keys_change_nothing(side, window):
    """On either side: positions are relative, so a text that starts later reads the same."""
    params, text = random_model(21), IDS[:, :4]
    settings = {"num_heads": 4, "rope": SLOW, "window": window}
    alone, alone_backward = llama(params, ids=text, **settings)
    noise, mask = IDS[:, 4:6], padding_mask(np.array([4, 4, 4]), 6)
    left = side == "left"
    ids, real = np.concatenate([noise, text] if left else [text, noise], axis=1), slice(2, 6) if left else slice(0, 4)
    mask = mask[..., ::-1] if left else mask
    logits, backward = llama(params, ids=ids, mask=mask, **settings)
    np.testing.assert_allclose(logits[:, real], alone, rtol=0, atol=1e-12)
    dlogits, dpadded = np.random.default_rng(22).normal(size=alone.shape), np.zeros_like(logits)
    dpadded[:, real] = dlogits
    trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), backward(dpadded), alone_backward(dlogits))
    if left:
        assert np.abs(llama(params, ids=ids, **settings)[0][:, real] - alone).max() > 1e-3  # without the mask it would be read


@pytest.mark.parametrize("window", [None, 3])
def test_a_batch_padded_left_decodes_as_it_is_read_at_once(window):
    params, ids = random_model(23), IDS[:, :6]
    mask = padding_mask(np.array([4, 6, 1]), 6)[..., ::-1]   # padded left by 2, 0 and 5
    every, state, logits = np.broadcast_to(mask, (3, 1, 6, 6)), None, []
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        part, state = llama_step(params, ids[:, start:stop], state, num_heads=4, window=window, mask=every[..., start:stop, :stop])
        logits.append(part)
    whole, _ = llama(params, ids=ids, num_heads=4, window=window, mask=mask)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, rtol=0, atol=1e-12)


def test_a_row_of_nothing_but_padding_stays_finite():
    params, mask = random_model(24), padding_mask(np.array([7, 0, 3]), 7)
    logits, backward = llama(params, ids=IDS, num_heads=4, mask=mask)
    assert np.isfinite(logits).all()
    assert all(np.isfinite(leaf).all() for _, leaf in trees.leaves(backward(np.ones_like(logits))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads: got 0"),
        ({"num_heads": 3}, "num_heads: got 3"),
        ({"num_heads": 16}, "num_heads|num_kv_heads|d_head"),
        ({"ids": np.array([[0, 13]])}, "ids: got ids from 0 to 13"),
        ({"ids": np.array([[0.0]])}, "ids"),
        ({"ids": np.zeros((1, 0), int)}, "ids"),
        ({"window": 0}, "window: got 0"),
        ({"eps": -1.0}, "eps: got -1.0"),
        ({"rope": "rope"}, "rope: got 'rope', wants a function"),
        ({"rope": partial(rope_fast, base=-1.0)}, r"rope\.base: got -1\.0"),
        ({"mask": np.ones((3, 1, 1, 6), bool)}, "mask"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # str of a function has its place in memory
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"params": random_model(), "ids": IDS, "num_heads": 4, **changes}
    with pytest.raises(ValueError, match=message):
        llama(call.pop("params"), **call)


def test_a_state_of_another_text_is_refused():
    params = random_model(25)
    _, state = llama_step(params, IDS, None, num_heads=4, window=3)
    for other, changes, message in (
        (random_model(num_layers=3), {"window": 3}, "state: got that of a model of 2 blocks, wants that of this model, of 3"),
        (random_model(num_kv_heads=4), {"window": 3}, "key: got float64 of shape"),
        (params, {"window": None}, "window: got None, wants 3, as the text was started with"),
        (params, {"window": 4}, "window: got 4, wants 3"),
    ):
        with pytest.raises(ValueError, match=message):
            llama_step(other, IDS[:, :1], state, num_heads=4, **changes)
    with pytest.raises(ValueError, match="state: got list, wants LlamaState"):
        llama_step(params, IDS[:, :1], [], num_heads=4)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_survive_the_way_out_and_in(tied, tmp_path):
    params = random_model(26, tied=tied)
    weights = llama_weights(params)
    assert weights["model.layers.1.mlp.gate_proj.weight"].shape == (5, 8)
    assert ("lm_head.weight" in weights) is not tied
    write_safetensors(tmp_path / "model.safetensors", weights)
    for source in (weights, tmp_path):
        read = load_llama(source)
        trees.map(np.testing.assert_array_equal, read, params)
        assert all(leaf.flags.c_contiguous for _, leaf in trees.leaves(read))


def test_a_repeated_head_is_tied_and_buffers_do_not_matter():
    params = random_model(27, tied=True)
    weights = llama_weights(params)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1)
    trees.map(np.testing.assert_array_equal, load_llama(weights), params)


def test_float16_is_read_as_float32():
    read = load_llama({name: array.astype(np.float16) for name, array in llama_weights(random_model()).items()})
    assert {leaf.dtype for _, leaf in trees.leaves(read)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"missing model\.norm\.weight"),
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), r"missing model\.layers\.1\.mlp\.up_proj\.weight"),
        (lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": np.ones(8)}), r"unexpected model\.layers\.0\.self_attn\.q_proj\.bias"),
        (lambda w: w.update({"model.layers.0.self_attn.k_proj.weight": np.ones((4, 7))}), r"k_proj\.weight of shape \(4, 7\), wants"),
        (lambda w: w.update({"model.norm.weight": np.ones(7)}), r"model\.norm\.weight of shape \(7,\), wants .*d_model = 8"),
        (lambda w: w.update({"lm_head.weight": np.ones((12, 8))}), r"lm_head\.weight of shape \(12, 8\), wants .*d_out = 13 as in params.embedding.weight"),
        (lambda w: w.update({"lm_head.weight": w["lm_head.weight"].astype(np.float32)}), r"lm_head\.weight .*float32, wants float64"),
        (lambda w: [w.pop(name) for name in list(w) if "embed" in name], r"missing model\.embed_tokens\.weight"),
        (lambda w: w.clear(), r"got no arrays, wants those of one model, which start with model\.layers\.0\."),
        (lambda w: [w.update({f"transformer.{name}": w.pop(name)}) for name in list(w)], r"names such as transformer\.model"),
    ],
)
def test_weights_of_something_else_are_refused_by_name(spoil, message):
    weights = llama_weights(random_model(28))
    spoil(weights)
    with pytest.raises(ValueError, match=message) as caught:
        load_llama(weights)
    assert "\n" not in str(caught.value)


def test_loading_copies_float32_weights_once():
    """At most one more copy at a time than the tree that is made: nothing passes through float64."""
    import tracemalloc

    sizes = {"vocabulary": 3000, "d_model": 64, "num_layers": 2, "num_heads": 2, "d_hidden": 500, "tied": True}
    weights = {name: np.ascontiguousarray(a) for name, a in llama_weights(init_llama(np.random.default_rng(0), **sizes)).items()}
    total = sum(array.nbytes for array in weights.values())
    tracemalloc.start()
    try:
        read = load_llama(weights)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.05 * total
    assert np.shares_memory(read.embedding.weight, weights["model.embed_tokens.weight"])


# --- Hugging Face's own -----------------------------------------------------------------------------------------------------


@pytest.fixture
def exact(monkeypatch):
    """PyTorch and transformers, whose norms, tables and softmax are held in float64: as they are, they round to float32."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from transformers.models.llama import modeling_llama
    from transformers.models.mistral import modeling_mistral

    softmax = torch.nn.functional.softmax

    def norm(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def tables(self, x, position_ids):
        parameters, half = self.config.rope_parameters, self.config.head_dim // 2
        frequency = self.inv_freq.double()                   # rounded where it was made, so made again, but for the slowed one
        if parameters["rope_type"] == "default":
            frequency = parameters["rope_theta"] ** -(torch.arange(half, dtype=torch.float64) / half)
        angles = position_ids[..., None].double() * frequency
        both = torch.cat([angles, angles], dim=-1)
        return both.cos(), both.sin()

    for file, name in ((modeling_llama, "Llama"), (modeling_mistral, "Mistral")):
        monkeypatch.setattr(getattr(file, f"{name}RMSNorm"), "forward", norm)
        monkeypatch.setattr(getattr(file, f"{name}RotaryEmbedding"), "forward", tables)
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim=None, dtype=None, **_: softmax(x, dim=dim))
    return torch, transformers


def hugging_face(torch, transformers, *, name="Llama", seed=0, **changes):
    """A small random model in float64 with noise on every parameter, its parameters as ours, and how ours is called."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 12}
    config = getattr(transformers, f"{name}Config")(**sizes, rms_norm_eps=1e-5, attn_implementation="eager", **changes)
    theirs = getattr(transformers, f"{name}ForCausalLM")(config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return theirs, load_llama({key: value.detach().numpy() for key, value in theirs.state_dict().items()})


def rope_parameters(base):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base}}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "theirs_config", "settings"),
    [
        ("Llama", {}, {}),
        ("Llama", {"tie_word_embeddings": True, **rope_parameters(100.0)}, {"rope": partial(rope_fast, base=100.0)}),
        ("Llama", {"head_dim": 6}, {}),
        ("Mistral", {"sliding_window": 3}, {"window": 3}),
        ("Mistral", {"sliding_window": None, "tie_word_embeddings": True}, {}),
    ],
    ids=["llama", "smollm2: tied", "llama: narrower heads", "mistral: window 3", "mistral: no window"],
)
def test_logits_and_every_gradient_equal_hugging_face(exact, name, theirs_config, settings):
    torch, transformers = exact
    theirs, params = hugging_face(torch, transformers, name=name, **theirs_config)
    ids, targets = np.random.default_rng(0).integers(17, size=(2, 3, 10))

    expected = theirs(torch.tensor(ids)).logits
    torch.nn.functional.cross_entropy(expected.reshape(-1, 17), torch.tensor(targets).reshape(-1)).backward()
    logits, backward = llama(params, ids=ids, num_heads=4, **settings)
    grads = llama_weights(backward(cross_entropy(logits, targets=targets)[1](np.float64(1))))

    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-10)
    named = dict(theirs.named_parameters())
    assert named.keys() == grads.keys()
    for key, parameter in named.items():
        np.testing.assert_allclose(grads[key], parameter.grad.numpy(), rtol=0, atol=1e-10, err_msg=key)


@pytest.mark.parity
@pytest.mark.parametrize(("name", "theirs_config", "settings"), [("Llama", {}, {}), ("Mistral", {"sliding_window": 3}, {"window": 3})])
def test_as_it_is_hugging_face_differs_by_its_float32_alone(name, theirs_config, settings):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs, params = hugging_face(torch, transformers, name=name, **theirs_config)
    ids = np.random.default_rng(0).integers(17, size=(3, 10))
    logits, _ = llama(params, ids=ids, num_heads=4, **settings)
    np.testing.assert_allclose(logits, theirs(torch.tensor(ids)).logits.detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_hugging_face(exact, side):
    torch, transformers = exact
    theirs, params = hugging_face(torch, transformers, name="Mistral", sliding_window=3)
    ids, lengths = np.random.default_rng(0).integers(17, size=(2, 7)), np.array([4, 7])
    real, mask = np.arange(7) < lengths[:, None], padding_mask(lengths, 7)
    real, mask = (real[:, ::-1], mask[..., ::-1]) if side == "left" else (real, mask)
    expected = theirs(torch.tensor(ids), attention_mask=torch.tensor(real.astype(int))).logits.detach().numpy()
    logits, _ = llama(params, ids=ids, num_heads=4, window=3, mask=mask)
    np.testing.assert_allclose(logits[real], expected[real], rtol=0, atol=1e-10)


@pytest.mark.parity
def test_decoding_equals_hugging_faces_own(exact):
    """Greedy, token by token, several windows long, each with its own cache."""
    torch, transformers = exact
    theirs, params = hugging_face(torch, transformers, name="Mistral", sliding_window=4)
    prompt = np.array([3, 1, 4, 1, 5])
    expected = theirs.generate(torch.tensor(prompt[None]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)[0, 5:]
    step = partial(llama_step, params, num_heads=4, window=4)
    written = generate(step, prompt_ids=prompt, num_tokens=20, temperature=0.0, rng=np.random.default_rng(0))
    assert list(written) == expected.tolist()


@pytest.mark.parity
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_what_we_write(exact, tied, tmp_path):
    torch, transformers = exact
    theirs, _ = hugging_face(torch, transformers, tie_word_embeddings=tied)
    sizes = {"vocabulary": 17, "d_model": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_hidden": 12}
    params = init_llama(np.random.default_rng(3), **sizes, tied=tied, std=0.4, dtype=np.float64)
    theirs.config.save_pretrained(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", llama_weights(params), metadata={"format": "pt"})
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float64)
    ids = np.random.default_rng(0).integers(17, size=(2, 6))
    np.testing.assert_allclose(llama(params, ids=ids, num_heads=4)[0], read(torch.tensor(ids)).logits.detach().numpy(), rtol=0, atol=1e-10)


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_hugging_faces_model_of_that_configuration_has_the_same_shapes(name):
    """Built without storage."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes, parameters = PUBLISHED[name][0].sizes, PUBLISHED[name][1]
    config = transformers.LlamaConfig(
        vocab_size=sizes["vocabulary"], hidden_size=sizes["d_model"], num_hidden_layers=sizes["num_layers"], num_attention_heads=sizes["num_heads"],
        num_key_value_heads=sizes["num_kv_heads"], intermediate_size=sizes["d_hidden"], tie_word_embeddings=sizes.get("tied", False),
    )  # fmt: skip
    with torch.device("meta"):
        assert transformers.LlamaForCausalLM(config).num_parameters() == parameters
