"""BERT as itself: equal to its formula and to Hugging Face's, both sides seen, padding and segments, sizes; weights in and out."""

import inspect
import re
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from autograd.scipy.special import erf

from minitransformers import check_gradients, trees
from minitransformers.attention.masks import padding_mask
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import Embedding
from minitransformers.foundation.safetensors import write_safetensors
from minitransformers.models import bert as module
from minitransformers.models.bert import (
    BERT_BASE,
    BERT_LARGE,
    BERT_MEDIUM,
    BERT_MINI,
    BERT_SMALL,
    BERT_TINY,
    BertOutput,
    bert,
    bert_block,
    bert_weights,
    init_bert,
    load_bert,
)
from minitransformers.models.configuration import Configuration
from minitransformers.positional.learned import Learned

SIZES = {"vocabulary": 13, "d_model": 8, "num_layers": 2, "num_heads": 4, "d_hidden": 5, "context": 9}
SMALL = {"vocabulary": 5, "d_model": 4, "num_layers": 1, "num_heads": 2, "d_hidden": 3, "context": 4}


def random_model(seed=0, **changes):
    rng = np.random.default_rng(seed)
    params = init_bert(rng, **{**SIZES, **changes}, std=0.4, dtype=np.float64)
    return trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params)


IDS = np.random.default_rng(1).integers(13, size=(3, 7))
SEGMENTS = np.array([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]])
LENGTHS = np.array([7, 5, 2])


def random_output(seed=2, *, like):
    rng = np.random.default_rng(seed)
    return BertOutput(*(None if part is None else rng.normal(size=part.shape) for part in like))


def textbook(params, ids, segments, lengths, num_heads, *, eps=1e-12):
    """BERT as a formula: one text, one head and one query at a time, softmax over the keys that are real."""

    def norm(p, x):
        mean = anp.mean(x, axis=-1, keepdims=True)
        return p.gain * (x - mean) / anp.sqrt(anp.mean((x - mean) ** 2, axis=-1, keepdims=True) + eps) + p.bias

    def gelu(x):
        return x * (1 + erf(x / anp.sqrt(2))) / 2

    def attention(p, x, length):
        q, k, v = (x @ part.weight + part.bias for part in p[:3])
        d, heads = q.shape[1] // num_heads, []
        for h in range(num_heads):
            cut, rows = slice(h * d, (h + 1) * d), []
            for i in range(len(x)):
                e = anp.exp(k[:length, cut] @ q[i, cut] / anp.sqrt(d))
                rows.append(e @ v[:length, cut] / anp.sum(e))
            heads.append(anp.stack(rows))
        return anp.concatenate(heads, axis=1) @ p.output.weight + p.output.bias

    def mlp(p, x):
        return gelu(x @ p.up.weight + p.up.bias) @ p.down.weight + p.down.bias

    out = []
    for text, kinds, length in zip(ids, segments, lengths, strict=True):
        x = anp.stack([params.embedding.weight[text[i]] + params.segments.weight[kinds[i]] + params.positions.table[i] for i in range(len(text))])
        x = norm(params.norm, x)
        for b in params.blocks:
            x = norm(b.attention_norm, x + attention(b.attention, x, length))
            x = norm(b.feed_forward_norm, x + mlp(b.feed_forward, x))
        pooled = anp.tanh(x[0] @ params.pooler.weight + params.pooler.bias)
        pair = pooled @ params.pair.weight + params.pair.bias
        h = norm(params.transform.norm, gelu(x @ params.transform.dense.weight + params.transform.dense.bias))
        out.append((x, pooled, pair, h @ params.embedding.weight.T + params.bias))
    return [anp.stack(part) for part in zip(*out, strict=True)]


def test_equals_the_formula_in_outputs_and_gradients():
    params, settings = random_model(), {"ids": IDS, "segments": SEGMENTS, "num_heads": 4, "mask": padding_mask(LENGTHS, 7)}
    out, backward = bert(params, **settings)
    for own, theirs in zip(out, textbook(params, IDS, SEGMENTS, LENGTHS, 4), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)
    dout, leaves = random_output(like=out), [leaf for _, leaf in trees.leaves(params)]

    def total(values):
        parts = textbook(trees.unflatten(params, values), IDS, SEGMENTS, LENGTHS, 4)
        return sum(anp.sum(dpart * part) for dpart, part in zip(dout, parts, strict=True))

    for (path, own), theirs in zip(trees.leaves(backward(dout)), autograd.grad(total)(leaves), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_eps_is_that_of_every_norm(eps):
    params = random_model()
    out, _ = bert(params, ids=IDS, segments=SEGMENTS, num_heads=4, eps=eps)
    for own, theirs in zip(out, textbook(params, IDS, SEGMENTS, [7, 7, 7], 4, eps=eps), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def test_a_block_alone_has_the_right_gradients():
    params, x = random_model(3, **SMALL).blocks[0], np.random.default_rng(4).normal(size=(2, 3, 4))
    report = check_gradients(bert_block, params, x, num_heads=2, second_opinion=False)
    assert report.passed, str(report)


HEADS = {
    "none: BertModel without its pooler": {"pooler": None, "pair": None, "transform": None, "bias": None},
    "pooler: BertModel": {"pair": None, "transform": None, "bias": None},
    "tokens: BertForMaskedLM": {"pooler": None, "pair": None},
    "pair: BertForNextSentencePrediction": {"transform": None, "bias": None},
    "pooler and tokens": {"pair": None},
}


@pytest.mark.parametrize("absent", HEADS.values(), ids=HEADS)
def test_a_head_that_is_not_there_returns_nothing_and_changes_nothing(absent):
    both = random_model(5, **SMALL)
    params, call = both._replace(**absent), {"ids": np.array([[1, 4, 1], [0, 2, 2]]), "num_heads": 2}
    out, backward = bert(params, **call)
    whole, whole_backward = bert(both, **call)
    assert (out.pooled is None, out.pair is None, out.tokens is None) == tuple(name in absent for name in ("pooler", "pair", "transform"))
    for own, theirs in zip(out, whole, strict=True):
        if own is not None:
            np.testing.assert_array_equal(own, theirs)
    dout = random_output(6, like=out)
    grads, expected = backward(dout), whole_backward(dout)
    assert all(getattr(grads, name) is None for name in absent)
    for path, own in trees.leaves(grads):
        np.testing.assert_allclose(own, dict(trees.leaves(expected))[path], rtol=0, atol=1e-13, err_msg=path)


@pytest.mark.parametrize("part", BertOutput._fields)
def test_what_a_loss_does_not_read_is_none(part):
    """Fine-tuning reads one part; pre-training two."""
    params, call = random_model(7, **SMALL), {"ids": np.array([[1, 4, 1], [0, 2, 2]]), "num_heads": 2}
    out, backward = bert(params, **call)
    dpart = np.random.default_rng(8).normal(size=getattr(out, part).shape)
    alone = BertOutput(None, None, None, None)._replace(**{part: dpart})
    zeros = BertOutput(*map(np.zeros_like, out))._replace(**{part: dpart})
    trees.map(np.testing.assert_array_equal, backward(alone), backward(zeros))
    grads = backward(alone)
    assert bool(np.abs(grads.pooler.weight).max() > 1e-3) is (part in ("pooled", "pair"))
    assert bool(np.abs(grads.transform.dense.weight).max() > 1e-3) is (part == "tokens")
    assert np.abs(grads.embedding.weight).max() > 1e-3

    def one(params):
        out, backward = bert(params, **call)
        return getattr(out, part), lambda dpart: backward(BertOutput(None, None, None, None)._replace(**{part: dpart}))

    report = check_gradients(one, params, second_opinion=False)
    assert report.passed, str(report)


@pytest.mark.parametrize("forgotten", ["as the table that is read", "as the head"])
def test_a_table_that_forgets_one_of_its_two_gradients_is_refused(forgotten):
    params = random_model(9, **SMALL)

    def forgetful(params, *, ids):
        out, backward = bert(params, ids=ids, num_heads=2)

        def wrong(dtokens):
            dparams = backward(BertOutput(None, None, None, dtokens))
            # What stood before the table, found again from the logits, as the table has full rank.
            h = np.linalg.lstsq(params.embedding.weight, (out.tokens - params.bias).reshape(-1, 5).T, rcond=None)[0].T
            as_head = dtokens.reshape(-1, 5).T @ h
            as_table = dparams.embedding.weight - as_head
            return dparams._replace(embedding=Embedding(as_table if forgotten == "as the head" else as_head))

        return out.tokens, wrong

    report = check_gradients(forgetful, params, ids=np.array([[1, 4, 1, 0]]), second_opinion=False)
    assert not report.passed
    assert report.worst.path == "params.embedding.weight"


def test_a_pooler_that_forgets_its_tanh_is_refused():
    params = random_model(10, **SMALL)

    def careless(params, *, ids):
        out, backward = bert(params, ids=ids, num_heads=2)
        return out.pooled, lambda dpooled: backward(BertOutput(None, dpooled / (1 - out.pooled**2), None, None))

    report = check_gradients(careless, params, ids=np.array([[1, 4, 1, 0]]), second_opinion=False)
    assert not report.passed


def changed(params, t, **settings):
    """Which positions' logits change when token t becomes another."""
    ids, other = IDS[:1], IDS[:1].copy()
    other[0, t] = (other[0, t] + 1) % 13
    before, after = (bert(params, ids=text, num_heads=4, **settings)[0] for text in (ids, other))
    return list(np.abs(before.tokens - after.tokens).max(axis=(0, 2)) > 1e-6), np.abs(before.pair - after.pair).max() > 1e-6


def test_every_position_sees_both_sides():
    """What tells it from GPT-2: one block is enough for any token to reach all others, the first and the pair among them."""
    params = random_model(11, num_layers=1)
    for t in range(7):
        assert changed(params, t) == ([True] * 7, True)


def test_a_hidden_token_reaches_no_other():
    params, mask = random_model(12), np.ones((1, 1, 1, 7), bool)
    mask[..., 3] = False
    assert changed(params, 3, mask=mask) == ([t == 3 for t in range(7)], False)


def test_without_positions_and_segments_a_text_is_a_bag():
    params = random_model(13)
    bag = params._replace(positions=Learned(np.zeros_like(params.positions.table)))
    order = np.random.default_rng(14).permutation(7)
    tokens, shuffled = (bert(bag, ids=ids, num_heads=4)[0].tokens for ids in (IDS, IDS[:, order]))
    np.testing.assert_allclose(shuffled, tokens[:, order], rtol=0, atol=1e-12)
    assert np.abs(bert(params, ids=IDS[:, order], num_heads=4)[0].tokens - bert(params, ids=IDS, num_heads=4)[0].tokens[:, order]).max() > 1e-3


def test_segments_are_rows_that_are_added_and_none_is_the_first():
    params = random_model(15)
    first, _ = bert(params, ids=IDS, num_heads=4)
    trees.map(np.testing.assert_array_equal, first, bert(params, ids=IDS, segments=np.zeros_like(IDS), num_heads=4)[0])
    second, _ = bert(params, ids=IDS, segments=np.ones_like(IDS), num_heads=4)
    assert np.abs(first.tokens - second.tokens).max() > 1e-3
    swapped = params._replace(segments=Embedding(params.segments.weight[::-1].copy()))
    there, back = bert(params, ids=IDS, segments=SEGMENTS, num_heads=4)[0], bert(swapped, ids=IDS, segments=1 - SEGMENTS, num_heads=4)[0]
    trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), there, back)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_keys_change_nothing(side):
    """Padded left, a text stands further on in the table of positions: the table is moved with it. [CLS] must stay the first."""
    params, text, kinds = random_model(16), IDS[:, :4], SEGMENTS[:, :4]
    noise, mask = IDS[:, 4:6], padding_mask(np.array([4, 4, 4]), 6)
    moved = params._replace(positions=Learned(params.positions.table[2:])) if side == "left" else params
    alone, alone_backward = bert(moved, ids=text, segments=kinds, num_heads=4)
    ids, both, real = np.concatenate([text, noise], axis=1), np.pad(kinds, ((0, 0), (0, 2))), slice(0, 4)
    if side == "left":
        ids, both, real, mask = np.concatenate([noise, text], axis=1), np.pad(kinds, ((0, 0), (2, 0))), slice(2, 6), mask[..., ::-1]
    out, backward = bert(params, ids=ids, segments=both, num_heads=4, mask=mask)
    np.testing.assert_allclose(out.tokens[:, real], alone.tokens, rtol=0, atol=1e-12)
    if side == "right":
        np.testing.assert_allclose(out.pair, alone.pair, rtol=0, atol=1e-12)
    dtokens, dpadded = np.random.default_rng(17).normal(size=alone.tokens.shape), np.zeros_like(out.tokens)
    dpadded[:, real] = dtokens
    found = backward(BertOutput(None, None, None, dpadded))
    expected = alone_backward(BertOutput(None, None, None, dtokens))
    if side == "left":
        assert not found.positions.table[:2].any()
        found = found._replace(positions=Learned(found.positions.table[2:]))
    trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), found, expected)
    assert np.abs(bert(params, ids=ids, segments=both, num_heads=4)[0].tokens[:, real] - alone.tokens).max() > 1e-3  # it would have been read


def test_a_text_of_nothing_but_padding_stays_finite():
    params = random_model(18)
    out, backward = bert(params, ids=IDS, num_heads=4, mask=padding_mask(np.array([7, 0, 3]), 7))
    assert all(np.isfinite(part).all() for part in out)
    assert all(np.isfinite(leaf).all() for _, leaf in trees.leaves(backward(random_output(like=out))))


def test_it_starts_undecided():
    params = init_bert(np.random.default_rng(19), vocabulary=11, d_model=64, num_layers=4, num_heads=4, context=64)
    assert params.blocks[0].feed_forward.up.weight.shape == (64, 256)
    for weight in (params.blocks[1].attention.output.weight, params.transform.dense.weight, params.pooler.weight):
        assert abs(weight.std() / 0.02 - 1) < 0.1
    assert not params.bias.any() and not params.pair.bias.any()
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}
    ids, targets = np.random.default_rng(20).integers(11, size=(2, 4, 64))
    out, _ = bert(params, ids=ids, num_heads=4)
    assert abs(float(cross_entropy(out.tokens, targets=targets)[0]) - np.log(11)) < 0.05
    assert abs(float(cross_entropy(out.pair, targets=targets[:, 0] % 2)[0]) - np.log(2)) < 0.05


def count(vocabulary, d_model, num_layers, num_heads, d_hidden=None, context=512):
    """With the pooler alone (BertModel), with the head for tokens alone (BertForMaskedLM), with both heads (BertForPreTraining)."""
    d, f = d_model, 4 * d_model if d_hidden is None else d_hidden
    block = 4 * d * d + 4 * d + 2 * d * f + f + d + 4 * d
    encoder = vocabulary * d + context * d + 2 * d + 2 * d + num_layers * block
    pooler, tokens, pair = d * d + d, d * d + d + 2 * d + vocabulary, 2 * d + 2
    return encoder + pooler, encoder + tokens, encoder + pooler + pair + tokens


PUBLISHED = {
    "BERT_TINY": (BERT_TINY, 4_385_920, 4_416_698),
    "BERT_MINI": (BERT_MINI, 11_170_560, 11_201_594),
    "BERT_SMALL": (BERT_SMALL, 28_763_648, 28_795_194),
    "BERT_MEDIUM": (BERT_MEDIUM, 41_373_184, 41_404_730),
    "BERT_BASE": (BERT_BASE, 109_482_240, 109_514_298),
    "BERT_LARGE": (BERT_LARGE, 335_141_888, 335_174_458),
}


def test_the_formula_of_the_count_is_that_of_the_parameters():
    both = random_model()
    forms = (both._replace(pair=None, transform=None, bias=None), both._replace(pooler=None, pair=None), both)
    assert tuple(map(trees.count_parameters, forms)) == count(**SIZES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_configurations_have_the_published_number_of_parameters(name):
    configuration, pooled, masked = PUBLISHED[name]
    assert count(**configuration.sizes)[:2] == (pooled, masked)


def test_every_named_configuration_is_held_to_its_count_and_explained():
    named = {name: found for name, found in vars(module).items() if isinstance(found, Configuration)}
    assert named == {name: configuration for name, (configuration, *_) in PUBLISHED.items()}
    rows = [line.split() for line in inspect.getdoc(inspect.unwrap(bert)).splitlines() if re.match(r"\s+BERT_", line)]
    assert [row[0] for row in rows] == list(named)
    for name, layers, d_model, heads, d_hidden, vocabulary, positions, pooled, masked in rows:
        sizes, settings = named[name]
        shown = {"vocabulary": vocabulary, "d_model": d_model, "num_layers": layers, "num_heads": heads}
        assert {size: int(number) for size, number in shown.items()} == sizes
        assert (int(d_hidden), int(positions), settings) == (4 * sizes["d_model"], 512, {"num_heads": int(heads)})
        assert tuple(int(number.replace(",", "")) for number in (pooled, masked)) == PUBLISHED[name][1:]


def test_a_named_configuration_runs_at_a_smaller_size():
    for configuration, *_ in PUBLISHED.values():
        heads = configuration.settings["num_heads"]
        small = {**configuration.sizes, "vocabulary": 7, "d_model": 4 * heads, "num_layers": 1}
        out, _ = bert(init_bert(np.random.default_rng(0), **small), ids=np.array([[1, 6, 2]]), **configuration.settings)
        assert out.tokens.shape == (1, 3, 7) and out.pair.shape == (1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads: got 0"),
        ({"num_heads": 3}, "num_heads: got 3"),
        ({"ids": np.array([[0, 13]])}, "ids: got ids from 0 to 13"),
        ({"ids": np.array([[0.0]])}, "ids"),
        ({"ids": np.zeros((1, 0), int)}, "ids"),
        ({"ids": np.zeros((1, 10), int)}, "positions: got 0 to 9, wants 0 to 8"),
        ({"segments": np.full_like(IDS, 2)}, "segments: got numbers from 2 to 2, wants 0 to 1, the rows of params.segments.weight"),
        ({"segments": np.full_like(IDS, -1)}, "segments: got numbers from -1 to -1"),
        ({"segments": IDS[:, :3]}, "segments: got shape"),
        ({"segments": SEGMENTS.astype(float)}, "segments: got float64"),
        ({"mask": np.ones((3, 1, 1, 6), bool)}, "mask"),
        ({"mask": np.ones((3, 1, 1, 7))}, "mask"),
        ({"eps": -1.0}, "eps: got -1.0"),
        ({"params": random_model()._replace(pooler=None)}, "params.pair: got a head for pairs and no pooler"),
        ({"params": random_model()._replace(bias=None)}, "params.bias: got a transform without a bias"),
        ({"params": random_model()._replace(transform=None)}, "params.bias: got a transform without a bias"),
        ({"params": random_model()._replace(bias=np.ones(1))}, r"params.bias: got shape \(1,\), wants .*vocabulary = 13"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"params": random_model(), "ids": IDS, "num_heads": 4, **changes}
    with pytest.raises(ValueError, match=message):
        bert(call.pop("params"), **call)


@pytest.mark.parametrize("absent", [{}, *HEADS.values()], ids=["both", *HEADS])
def test_weights_survive_the_way_out_and_in(absent, tmp_path):
    params = random_model(21)._replace(**absent)
    weights = bert_weights(params)
    bare = "pair" in absent and "transform" in absent
    assert weights[f"{'' if bare else 'bert.'}encoder.layer.1.intermediate.dense.weight"].shape == (5, 8)
    write_safetensors(tmp_path / "model.safetensors", weights)
    for source in (weights, tmp_path):
        read = load_bert(source)
        trees.map(np.testing.assert_array_equal, read, params)
        assert all(leaf.flags.c_contiguous for _, leaf in trees.leaves(read))


def test_the_first_files_are_read():
    """Norms with gammas and betas, the table of tokens and the bias a second time, the numbers of the positions."""
    params = random_model(22)
    weights = {
        re.sub(r"LayerNorm\.(weight|bias)$", lambda m: f"LayerNorm.{ {'weight': 'gamma', 'bias': 'beta'}[m[1]]}", name): array
        for name, array in bert_weights(params).items()
    }
    assert sum(name.endswith(("gamma", "beta")) for name in weights) == 2 * (1 + 2 * 2 + 1)
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].copy()
    weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].copy()
    weights["bert.embeddings.position_ids"] = np.arange(9)[None]
    trees.map(np.testing.assert_array_equal, load_bert(weights), params)


def test_float16_is_read_as_float32():
    read = load_bert({name: array.astype(np.float16) for name, array in bert_weights(random_model()).items()})
    assert {leaf.dtype for _, leaf in trees.leaves(read)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("bert.embeddings.LayerNorm.bias"), r"missing bert\.embeddings\.LayerNorm\.bias"),
        (lambda w: w.pop("bert.encoder.layer.1.output.dense.weight"), r"missing bert\.encoder\.layer\.1\.output\.dense\.weight"),
        (lambda w: w.pop("bert.pooler.dense.bias"), r"missing bert\.pooler\.dense\.bias"),
        (lambda w: w.pop("cls.predictions.bias"), r"missing cls\.predictions\.bias"),
        (lambda w: w.pop("cls.seq_relationship.weight"), r"missing cls\.seq_relationship\.weight"),
        (lambda w: w.update({"classifier.weight": np.ones((2, 8))}), r"unexpected classifier\.weight"),
        (lambda w: w.update({"cls.predictions.bias": np.ones(12)}), r"cls\.predictions\.bias of shape \(12,\), wants .*vocabulary = 13"),
        (lambda w: w.update({"bert.embeddings.token_type_embeddings.weight": np.ones((2, 7))}), r"token_type_embeddings\.weight of shape \(2, 7\)"),
        (lambda w: w.update({"cls.predictions.transform.dense.weight": np.ones((7, 8))}), r"transform\.dense\.weight of shape \(7, 8\), wants"),
        (lambda w: w.update({"cls.predictions.transform.LayerNorm.weight": np.ones(7)}), r"transform\.LayerNorm\.weight of shape \(7,\)"),
        (lambda w: w.update({"cls.predictions.decoder.weight": np.ones((13, 8))}), r"decoder\.weight of its own, wants bert\.embeddings\.word"),
        (lambda w: w.update({"cls.predictions.decoder.bias": np.ones(13)}), r"decoder\.bias of its own, wants cls\.predictions\.bias"),
        (lambda w: w.update({"bert.pooler.dense.bias": np.ones(8, np.float32)}), r"float32, wants float64"),
        (lambda w: w.clear(), r"got no arrays, wants those of one model, which start with bert\.encoder\.layer\.0\."),
        (lambda w: [w.update({f"model.{name}": w.pop(name)}) for name in list(w)], r"names such as model\.bert"),
    ],
)
def test_weights_of_something_else_are_refused_by_name(spoil, message):
    weights = bert_weights(random_model(23))
    spoil(weights)
    with pytest.raises(ValueError, match=message) as caught:
        load_bert(weights)
    assert "\n" not in str(caught.value)


# --- Hugging Face's own -----------------------------------------------------------------------------------------------------


@pytest.fixture
def references():
    return pytest.importorskip("torch"), pytest.importorskip("transformers")


def hugging_face(torch, transformers, name, *, seed=0):
    """A small random model in float64 with noise on every parameter, and its parameters as ours."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 17, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 10}
    config = transformers.BertConfig(**sizes, max_position_embeddings=11, attn_implementation="eager")
    theirs = getattr(transformers, name)(config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return theirs, load_bert({key: value.detach().numpy() for key, value in theirs.state_dict().items()})


@pytest.fixture
def padded():
    """Pairs of texts of different lengths; id 0 is padding, which Hugging Face's table never learns from."""
    rng = np.random.default_rng(0)
    lengths = np.array([10, 7, 4])
    real = np.arange(10) < lengths[:, None]
    ids = np.where(real, rng.integers(1, 17, size=(3, 10)), 0)
    segments = ((np.arange(10) >= np.array([5, 3, 4])[:, None]) & real).astype(int)
    labels = np.where(real & (rng.random((3, 10)) < 0.5), rng.integers(17, size=(3, 10)), -100)
    return ids, segments, lengths, real, labels, np.array([0, 1, 1])


def same_gradients(theirs, params_of_gradients):
    grads, named = bert_weights(params_of_gradients), dict(theirs.named_parameters())
    assert named.keys() == grads.keys()
    for key, parameter in named.items():
        np.testing.assert_allclose(grads[key], parameter.grad.numpy(), rtol=0, atol=1e-10, err_msg=key)


def tensors(torch, ids, segments, real):
    return {"input_ids": torch.tensor(ids), "token_type_ids": torch.tensor(segments), "attention_mask": torch.tensor(real.astype(int))}


@pytest.mark.parity
def test_pre_training_equals_hugging_face_in_logits_and_every_gradient(references, padded):
    torch, transformers = references
    theirs, params = hugging_face(torch, transformers, "BertForPreTraining")
    ids, segments, lengths, real, labels, follows = padded
    expected = theirs(**tensors(torch, ids, segments, real), labels=torch.tensor(labels), next_sentence_label=torch.tensor(follows))
    expected.loss.backward()

    out, backward = bert(params, ids=ids, segments=segments, num_heads=4, mask=padding_mask(lengths, 10))
    token_loss, token_backward = cross_entropy(out.tokens, targets=labels)
    pair_loss, pair_backward = cross_entropy(out.pair, targets=follows)
    one = np.float64(1)
    dparams = backward(BertOutput(None, None, pair_backward(one), token_backward(one)))

    np.testing.assert_allclose(out.tokens[real], expected.prediction_logits.detach().numpy()[real], rtol=0, atol=1e-10)
    np.testing.assert_allclose(out.pair, expected.seq_relationship_logits.detach().numpy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(token_loss + pair_loss, expected.loss.item(), rtol=0, atol=1e-12)
    same_gradients(theirs, dparams)


@pytest.mark.parity
def test_masked_language_modelling_equals_hugging_face(references, padded):
    torch, transformers = references
    theirs, params = hugging_face(torch, transformers, "BertForMaskedLM", seed=1)
    assert params.pooler is None and params.pair is None
    ids, segments, lengths, real, labels, _ = padded
    expected = theirs(**tensors(torch, ids, segments, real), labels=torch.tensor(labels))
    expected.loss.backward()
    out, backward = bert(params, ids=ids, segments=segments, num_heads=4, mask=padding_mask(lengths, 10))
    loss, loss_backward = cross_entropy(out.tokens, targets=labels)
    np.testing.assert_allclose(out.tokens[real], expected.logits.detach().numpy()[real], rtol=0, atol=1e-10)
    np.testing.assert_allclose(loss, expected.loss.item(), rtol=0, atol=1e-12)
    same_gradients(theirs, backward(BertOutput(None, None, None, loss_backward(np.float64(1)))))


@pytest.mark.parity
def test_hidden_states_and_pooler_equal_hugging_face(references, padded):
    torch, transformers = references
    theirs, params = hugging_face(torch, transformers, "BertModel", seed=2)
    assert params.pair is None and params.transform is None
    ids, segments, lengths, real, *_ = padded
    expected = theirs(**tensors(torch, ids, segments, real))
    out, backward = bert(params, ids=ids, segments=segments, num_heads=4, mask=padding_mask(lengths, 10))
    rng = np.random.default_rng(3)
    dhidden, dpooled = rng.normal(size=out.hidden.shape) * real[..., None], rng.normal(size=out.pooled.shape)
    ((expected.last_hidden_state * torch.tensor(dhidden)).sum() + (expected.pooler_output * torch.tensor(dpooled)).sum()).backward()
    np.testing.assert_allclose(out.hidden[real], expected.last_hidden_state.detach().numpy()[real], rtol=0, atol=1e-10)
    np.testing.assert_allclose(out.pooled, expected.pooler_output.detach().numpy(), rtol=0, atol=1e-10)
    same_gradients(theirs, backward(BertOutput(dhidden, dpooled, None, None)))


FORMS = {
    "BertForPreTraining": {},
    "BertForMaskedLM": {"pooler": None, "pair": None},
    "BertModel": {"pair": None, "transform": None, "bias": None},
}


@pytest.mark.parity
@pytest.mark.parametrize("name", FORMS)
def test_transformers_reads_what_we_write(references, name, tmp_path):
    torch, transformers = references
    theirs, _ = hugging_face(torch, transformers, name)
    sizes = {"vocabulary": 17, "d_model": 12, "num_layers": 3, "num_heads": 4, "d_hidden": 10, "context": 11}
    params = random_model(24, **sizes)._replace(**FORMS[name])
    theirs.config.save_pretrained(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", bert_weights(params), metadata={"format": "pt"})
    read, info = getattr(transformers, name).from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float64, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = np.random.default_rng(0).integers(1, 17, size=(2, 6))
    out, expected = bert(params, ids=ids, num_heads=4)[0], read(torch.tensor(ids))
    own, their_part = (out.hidden, expected.last_hidden_state) if name == "BertModel" else (out.tokens, expected[0])
    np.testing.assert_allclose(own, their_part.detach().numpy(), rtol=0, atol=1e-10)


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_hugging_faces_model_of_that_configuration_has_the_same_shapes(references, name):
    """Built without storage."""
    torch, transformers = references
    sizes = PUBLISHED[name][0].sizes
    config = transformers.BertConfig(
        vocab_size=sizes["vocabulary"], hidden_size=sizes["d_model"], num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"], intermediate_size=4 * sizes["d_model"],
    )  # fmt: skip
    assert config.layer_norm_eps == 1e-12 and config.hidden_act == "gelu" and config.max_position_embeddings == 512
    with torch.device("meta"):
        models = (transformers.BertModel, transformers.BertForMaskedLM, transformers.BertForPreTraining)
        assert tuple(model(config).num_parameters() for model in models) == count(**sizes)
