"""ALBERT as itself: equal to its formula and to Hugging Face's, one block whose gradient is a sum over its uses, a narrow table; weights in and out."""

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
from minitransformers.basics.gelu import gelu, gelu_exact
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import slot
from minitransformers.foundation.safetensors import write_safetensors
from minitransformers.models import albert as module
from minitransformers.models.albert import (
    ALBERT_BASE,
    ALBERT_LARGE,
    ALBERT_XLARGE,
    ALBERT_XXLARGE,
    albert,
    albert_weights,
    init_albert,
    load_albert,
)
from minitransformers.models.bert import Bert, BertOutput, BertTransform, bert, bert_block
from minitransformers.models.configuration import Configuration
from minitransformers.norms.layer_norm import layer_norm

SIZES = {"vocabulary": 13, "d_embedding": 6, "d_model": 8, "num_heads": 4, "d_hidden": 5, "context": 9}
SMALL = {"vocabulary": 5, "d_embedding": 3, "d_model": 4, "num_heads": 2, "d_hidden": 6, "context": 7}
SETTINGS = {"num_layers": 3, "num_heads": 4}


def random_model(seed=0, **changes):
    rng = np.random.default_rng(seed)
    params = init_albert(rng, **{**SIZES, **changes}, std=0.4, dtype=np.float64)
    return trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params)


IDS = np.random.default_rng(1).integers(13, size=(3, 7))
SEGMENTS = np.array([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]])
LENGTHS = np.array([7, 5, 2])


def random_output(seed=2, *, like):
    rng = np.random.default_rng(seed)
    return BertOutput(*(None if part is None else rng.normal(size=part.shape) for part in like))


def by_tanh(x):
    return x * (1 + anp.tanh(anp.sqrt(2 / anp.pi) * (x + 0.044715 * x**3))) / 2


def by_erf(x):
    return x * (1 + erf(x / anp.sqrt(2))) / 2


def textbook(params, ids, segments, lengths, num_layers, num_heads, *, eps=1e-12, phi=by_tanh):
    """ALBERT as a formula: one text, one head and one query at a time, softmax over the keys that are real; blocks[l] is the same for all l,
    or a list of blocks of their own."""
    blocks = params.block if isinstance(params.block, list) else [params.block] * num_layers

    def norm(p, x):
        mean = anp.mean(x, axis=-1, keepdims=True)
        return p.gain * (x - mean) / anp.sqrt(anp.mean((x - mean) ** 2, axis=-1, keepdims=True) + eps) + p.bias

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

    out = []
    for text, kinds, length in zip(ids, segments, lengths, strict=True):
        x = anp.stack([params.embedding.weight[text[i]] + params.segments.weight[kinds[i]] + params.positions.table[i] for i in range(len(text))])
        x = norm(params.norm, x) @ params.widen.weight + params.widen.bias
        for b in blocks:
            x = norm(b.attention_norm, x + attention(b.attention, x, length))
            inner = phi(x @ b.feed_forward.up.weight + b.feed_forward.up.bias)
            x = norm(b.feed_forward_norm, x + inner @ b.feed_forward.down.weight + b.feed_forward.down.bias)
        pooled = anp.tanh(x[0] @ params.pooler.weight + params.pooler.bias)
        pair = pooled @ params.pair.weight + params.pair.bias
        h = norm(params.transform.norm, phi(x @ params.transform.dense.weight + params.transform.dense.bias))
        out.append((x, pooled, pair, h @ params.embedding.weight.T + params.bias))
    return [anp.stack(part) for part in zip(*out, strict=True)]


CALL = {"ids": IDS, "segments": SEGMENTS, "mask": padding_mask(LENGTHS, 7), **SETTINGS}


def test_equals_the_formula_in_outputs_and_gradients():
    params = random_model()
    out, backward = albert(params, **CALL)
    for own, theirs in zip(out, textbook(params, IDS, SEGMENTS, LENGTHS, **SETTINGS), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)
    dout, leaves = random_output(like=out), [leaf for _, leaf in trees.leaves(params)]

    def total(values):
        parts = textbook(trees.unflatten(params, values), IDS, SEGMENTS, LENGTHS, **SETTINGS)
        return sum(anp.sum(dpart * part) for dpart, part in zip(dout, parts, strict=True))

    for (path, own), theirs in zip(trees.leaves(backward(dout)), autograd.grad(total)(leaves), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


@pytest.mark.parametrize(
    "changes", [{"eps": 1e-5}, {"eps": 0.5}, {"num_layers": 1}, {"num_layers": 5}, {"num_heads": 2}, {"activation": slot(gelu_exact)}],
    ids=lambda changes: "-".join(f"{name}={getattr(value, '__name__', value)}" for name, value in changes.items()),
)
def test_settings_are_those_of_the_formula(changes):
    params, phi = random_model(), by_erf if "activation" in changes else by_tanh
    out, _ = albert(params, **{**CALL, **changes})
    wanted = {**SETTINGS, **{name: value for name, value in changes.items() if name != "activation"}, "phi": phi}
    for own, theirs in zip(out, textbook(params, IDS, SEGMENTS, LENGTHS, **wanted), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def test_the_usual_settings_are_those_of_the_base_model():
    params = random_model(num_heads=12, d_model=24)
    trees.map(np.testing.assert_array_equal, albert(params, ids=IDS)[0], albert(params, ids=IDS, **ALBERT_BASE.settings, activation=slot(gelu))[0])


def test_the_blocks_gradient_is_the_sum_of_those_of_blocks_of_their_own():
    """Sharing is a sum: give each layer a copy of the block, take the gradient of each copy, add."""
    params, layers = random_model(3), 3
    out, backward = albert(params, **CALL)
    dout, copies = random_output(like=out), [params.block] * layers

    def total(values):
        own = params._replace(block=trees.unflatten(copies, values))
        return sum(anp.sum(d * part) for d, part in zip(dout, textbook(own, IDS, SEGMENTS, LENGTHS, **SETTINGS), strict=True))

    each = trees.unflatten(copies, autograd.grad(total)([leaf for _, leaf in trees.leaves(copies)]))
    found = backward(dout).block
    trees.map(lambda *leaves: np.testing.assert_allclose(leaves[0], sum(leaves[1:]), rtol=0, atol=1e-10), found, *each)
    assert np.abs(each[0].attention.value.weight - each[2].attention.value.weight).max() > 1e-3  # each use says something else


@pytest.mark.parametrize("kept", [0, 1, -1])
def test_a_block_that_forgets_all_its_uses_but_one_is_refused(kept):
    params = random_model(4, **SMALL)

    def forgetful(params, *, ids):
        out, backward = albert(params, ids=ids, num_layers=3, num_heads=2)

        def wrong(dhidden):
            dparams = backward(BertOutput(dhidden, None, None, None))
            x = params.embedding.weight[ids] + params.segments.weight[0] + params.positions.table[: ids.shape[1]]
            x = linear(params.widen, layer_norm(params.norm, x, eps=1e-12)[0])[0]
            backwards, uses, dx = [], [], dhidden
            for _ in range(3):
                x, block_backward = bert_block(params.block, x, num_heads=2, activation=slot(gelu))
                backwards.append(block_backward)
            for block_backward in reversed(backwards):
                duse, dx = block_backward(dx)
                uses.append(duse)
            trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), dparams.block, trees.map(lambda *u: sum(u), *uses))
            return dparams._replace(block=uses[kept])

        return out.hidden, wrong

    report = check_gradients(forgetful, params, ids=np.array([[1, 4, 1, 0]]), second_opinion=False)
    assert not report.passed
    assert report.worst.path.startswith("params.block.")


@pytest.mark.parametrize("forgotten", ["as the table that is read", "as the head"])
def test_a_table_that_forgets_one_of_its_two_gradients_is_refused(forgotten):
    params = random_model(5, **SMALL)

    def forgetful(params, *, ids):
        out, backward = albert(params, ids=ids, num_layers=2, num_heads=2)

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


def test_with_a_table_as_wide_as_the_model_and_one_layer_it_is_bert():
    """The map W_e is then the unit matrix, and the rest is BERT's, its activation apart."""
    params = random_model(6, d_embedding=8)
    params = params._replace(widen=Linear(np.eye(8), np.zeros(8)))
    tables = (params.embedding, params.positions, params.segments, params.norm)
    same = Bert(*tables, [params.block], params.pooler, params.pair, BertTransform(*params.transform), params.bias)
    call = {"ids": IDS, "segments": SEGMENTS, "num_heads": 4, "mask": padding_mask(LENGTHS, 7)}
    own, theirs = albert(params, **call, num_layers=1, activation=slot(gelu_exact))[0], bert(same, **call)[0]
    trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), own, theirs)


def test_layers_cost_no_parameters_and_read_on():
    """More layers are more steps of one map: those of three are the first three of five."""
    params = random_model(7)
    hidden = [albert(params, ids=IDS, num_layers=n, num_heads=4)[0].hidden for n in (3, 5)]
    again = hidden[0]
    for _ in range(2):
        again, _ = bert_block(params.block, again, num_heads=4, activation=slot(gelu))
    np.testing.assert_allclose(again, hidden[1], rtol=0, atol=1e-12)
    assert np.abs(hidden[0] - hidden[1]).max() > 1e-3


def test_the_table_of_scores_has_the_rank_of_the_narrow_table():
    """What factorising gives up: logits, without their bias, lie in d_embedding dimensions, though there are d_model features."""
    params = random_model(8)
    tokens = albert(params, ids=np.random.default_rng(0).integers(13, size=(8, 7)), **SETTINGS)[0].tokens - params.bias
    assert np.linalg.matrix_rank(tokens.reshape(-1, 13), tol=1e-9) == 6


HEADS = {
    "none: AlbertModel without its pooler": {"pooler": None, "pair": None, "transform": None, "bias": None},
    "pooler: AlbertModel": {"pair": None, "transform": None, "bias": None},
    "tokens: AlbertForMaskedLM": {"pooler": None, "pair": None},
    "pair": {"transform": None, "bias": None},
    "pooler and tokens": {"pair": None},
}


@pytest.mark.parametrize("absent", HEADS.values(), ids=HEADS)
def test_a_head_that_is_not_there_returns_nothing_and_changes_nothing(absent):
    both = random_model(9, **SMALL)
    params, call = both._replace(**absent), {"ids": np.array([[1, 4, 1], [0, 2, 2]]), "num_layers": 2, "num_heads": 2}
    out, backward = albert(params, **call)
    whole, whole_backward = albert(both, **call)
    assert (out.pooled is None, out.pair is None, out.tokens is None) == tuple(name in absent for name in ("pooler", "pair", "transform"))
    for own, theirs in zip(out, whole, strict=True):
        if own is not None:
            np.testing.assert_array_equal(own, theirs)
    dout = random_output(10, like=out)
    grads, expected = backward(dout), whole_backward(dout)
    assert all(getattr(grads, name) is None for name in absent)
    for path, own in trees.leaves(grads):
        np.testing.assert_allclose(own, dict(trees.leaves(expected))[path], rtol=0, atol=1e-13, err_msg=path)


@pytest.mark.parametrize("part", BertOutput._fields)
def test_what_a_loss_does_not_read_is_none(part):
    params, call = random_model(11, **SMALL), {"ids": np.array([[1, 4, 1], [0, 2, 2]]), "num_layers": 2, "num_heads": 2}
    out, backward = albert(params, **call)
    dpart = np.random.default_rng(12).normal(size=getattr(out, part).shape)
    alone = BertOutput(None, None, None, None)._replace(**{part: dpart})
    zeros = BertOutput(*map(np.zeros_like, out))._replace(**{part: dpart})
    trees.map(np.testing.assert_array_equal, backward(alone), backward(zeros))
    grads = backward(alone)
    assert bool(np.abs(grads.pooler.weight).max() > 1e-3) is (part in ("pooled", "pair"))
    assert bool(np.abs(grads.transform.dense.weight).max() > 1e-3) is (part == "tokens")
    assert np.abs(grads.embedding.weight).max() > 1e-3


def changed(params, t, **settings):
    """Which positions' logits change when token t becomes another."""
    ids, other = IDS[:1], IDS[:1].copy()
    other[0, t] = (other[0, t] + 1) % 13
    before, after = (albert(params, ids=text, num_heads=4, **settings)[0] for text in (ids, other))
    return list(np.abs(before.tokens - after.tokens).max(axis=(0, 2)) > 1e-6), np.abs(before.pair - after.pair).max() > 1e-6


def test_every_position_sees_both_sides():
    for t in range(7):
        assert changed(random_model(13), t, num_layers=1) == ([True] * 7, True)


def test_a_hidden_token_reaches_no_other():
    mask = np.ones((1, 1, 1, 7), bool)
    mask[..., 3] = False
    assert changed(random_model(14), 3, mask=mask, num_layers=3) == ([t == 3 for t in range(7)], False)


def test_padded_keys_change_nothing():
    params, mask = random_model(15), padding_mask(np.array([4, 4, 4]), 6)
    alone, alone_backward = albert(params, ids=IDS[:, :4], segments=SEGMENTS[:, :4], **SETTINGS)
    segments = np.pad(SEGMENTS[:, :4], ((0, 0), (0, 2)))
    out, backward = albert(params, ids=IDS[:, :6], segments=segments, mask=mask, **SETTINGS)
    np.testing.assert_allclose(out.tokens[:, :4], alone.tokens, rtol=0, atol=1e-12)
    np.testing.assert_allclose(out.pair, alone.pair, rtol=0, atol=1e-12)
    dtokens, dpadded = np.random.default_rng(16).normal(size=alone.tokens.shape), np.zeros_like(out.tokens)
    dpadded[:, :4] = dtokens
    found, expected = backward(BertOutput(None, None, None, dpadded)), alone_backward(BertOutput(None, None, None, dtokens))
    trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), found, expected)
    unmasked = albert(params, ids=IDS[:, :6], segments=segments, **SETTINGS)[0]
    assert np.abs(unmasked.tokens[:, :4] - alone.tokens).max() > 1e-3  # it would have been read


def test_segments_are_rows_that_are_added_and_none_is_the_first():
    params = random_model(17)
    first, _ = albert(params, ids=IDS, **SETTINGS)
    trees.map(np.testing.assert_array_equal, first, albert(params, ids=IDS, segments=np.zeros_like(IDS), **SETTINGS)[0])
    assert np.abs(first.tokens - albert(params, ids=IDS, segments=np.ones_like(IDS), **SETTINGS)[0].tokens).max() > 1e-3


def test_a_text_of_nothing_but_padding_stays_finite():
    out, backward = albert(random_model(18), ids=IDS, mask=padding_mask(np.array([7, 0, 3]), 7), **SETTINGS)
    assert all(np.isfinite(part).all() for part in out)
    assert all(np.isfinite(leaf).all() for _, leaf in trees.leaves(backward(random_output(like=out))))


def test_it_starts_undecided():
    params = init_albert(np.random.default_rng(19), vocabulary=11, d_embedding=96, d_model=64, num_heads=4, context=64)
    assert params.block.feed_forward.up.weight.shape == (64, 256)
    for weight in (params.block.attention.output.weight, params.widen.weight, params.transform.dense.weight, params.pooler.weight):
        assert abs(weight.std() / 0.02 - 1) < 0.1
    for table in (params.embedding.weight, params.positions.table, params.segments.weight):
        assert abs(table.std() / 0.02 - 1) < 0.2
    assert not params.bias.any() and not params.pair.bias.any()
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}
    assert init_albert(np.random.default_rng(0), vocabulary=3, d_model=4, num_heads=1).embedding.weight.shape == (3, 128)
    assert init_albert(np.random.default_rng(0), vocabulary=3, d_model=4, num_heads=1).positions.table.shape == (512, 128)
    ids, targets = np.random.default_rng(20).integers(11, size=(2, 4, 64))
    out, _ = albert(params, ids=ids, **SETTINGS)
    assert abs(float(cross_entropy(out.tokens, targets=targets)[0]) - np.log(11)) < 0.05
    assert abs(float(cross_entropy(out.pair, targets=targets[:, 0] % 2)[0]) - np.log(2)) < 0.05


def count(vocabulary, d_model, num_heads, d_embedding=128, d_hidden=None, context=512):
    """With the pooler alone (AlbertModel), with the head for tokens alone (AlbertForMaskedLM), with both heads (AlbertForPreTraining)."""
    d, e, f = d_model, d_embedding, 4 * d_model if d_hidden is None else d_hidden
    block = 4 * d * d + 4 * d + 2 * d * f + f + d + 4 * d
    encoder = vocabulary * e + context * e + 2 * e + 2 * e + e * d + d + block
    pooler, tokens, pair = d * d + d, d * e + e + 2 * e + vocabulary, 2 * d + 2
    return encoder + pooler, encoder + tokens, encoder + pooler + pair + tokens


PUBLISHED = {
    "ALBERT_BASE": (ALBERT_BASE, 11_683_584, 11_221_680, 11_813_810),
    "ALBERT_LARGE": (ALBERT_LARGE, 17_683_968, 16_795_824, 17_847_474),
    "ALBERT_XLARGE": (ALBERT_XLARGE, 58_724_864, 54_821_040, 59_021_490),
    "ALBERT_XXLARGE": (ALBERT_XXLARGE, 222_595_584, 206_368_944, 223_158_450),
}


def test_the_formula_of_the_count_is_that_of_the_parameters():
    both = random_model()
    forms = (both._replace(pair=None, transform=None, bias=None), both._replace(pooler=None, pair=None), both)
    assert tuple(map(trees.count_parameters, forms)) == count(**SIZES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_configurations_have_the_published_number_of_parameters(name):
    configuration, *counts = PUBLISHED[name]
    assert list(count(**configuration.sizes)) == counts


def test_every_named_configuration_is_held_to_its_count_and_explained():
    named = {name: found for name, found in vars(module).items() if isinstance(found, Configuration)}
    assert named == {name: configuration for name, (configuration, *_) in PUBLISHED.items()}
    rows = [line.split() for line in inspect.getdoc(inspect.unwrap(albert)).splitlines() if re.match(r"\s+ALBERT_", line)]
    assert [row[0] for row in rows] == list(named)
    for name, layers, d_model, heads, vocabulary, *counts in rows:
        sizes, settings = named[name]
        assert sizes == {"vocabulary": int(vocabulary), "d_model": int(d_model), "num_heads": int(heads)}
        assert settings == {"num_layers": int(layers), "num_heads": int(heads)}
        assert tuple(int(number.replace(",", "")) for number in counts) == PUBLISHED[name][1:]


def test_a_named_configuration_runs_at_a_smaller_size():
    for configuration, *_ in PUBLISHED.values():
        small = {**configuration.sizes, "vocabulary": 7, "d_model": 2 * configuration.settings["num_heads"], "d_hidden": 3}
        out, _ = albert(init_albert(np.random.default_rng(0), **small), ids=np.array([[1, 6, 2]]), **configuration.settings)
        assert out.tokens.shape == (1, 3, 7) and out.pair.shape == (1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers: got 0"),
        ({"num_heads": 0}, "num_heads: got 0"),
        ({"num_heads": 3}, "num_heads: got 3"),
        ({"ids": np.array([[0, 13]])}, "ids: got ids from 0 to 13"),
        ({"ids": np.array([[0.0]])}, "ids"),
        ({"ids": np.zeros((1, 0), int)}, "ids"),
        ({"ids": np.zeros((1, 10), int)}, "positions: got 0 to 9, wants 0 to 8"),
        ({"segments": np.full_like(IDS, 2)}, "segments: got"),
        ({"segments": np.full_like(IDS, -1)}, "segments: got"),
        ({"segments": IDS[:, :3]}, "segments: got shape"),
        ({"mask": np.ones((3, 1, 1, 6), bool)}, "mask"),
        ({"eps": -1.0}, "eps: got -1.0"),
        ({"params": random_model()._replace(pooler=None)}, "params.pair: got a head for pairs and no pooler"),
        ({"params": random_model()._replace(bias=None)}, "params.bias: got a transform without a bias"),
        ({"params": random_model()._replace(bias=np.ones(1))}, r"params.bias: got shape \(1,\), wants .*vocabulary = 13"),
        ({"params": random_model()._replace(widen=Linear(np.ones((5, 8)), np.ones(8)))}, r"params\.widen\.weight: got shape \(5, 8\)"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"params": random_model(), "ids": IDS, **SETTINGS, **changes}
    with pytest.raises(ValueError, match=message):
        albert(call.pop("params"), **call)


@pytest.mark.parametrize("absent", [{}, *HEADS.values()], ids=["both", *HEADS])
def test_weights_survive_the_way_out_and_in(absent, tmp_path):
    params = random_model(21)._replace(**absent)
    weights = albert_weights(params)
    bare = "pair" in absent and "transform" in absent
    assert weights[f"{'' if bare else 'albert.'}encoder.albert_layer_groups.0.albert_layers.0.ffn.weight"].shape == (5, 8)
    write_safetensors(tmp_path / "model.safetensors", weights)
    for source in (weights, tmp_path):
        read = load_albert(source)
        trees.map(np.testing.assert_array_equal, read, params)
        assert all(leaf.flags.c_contiguous for _, leaf in trees.leaves(read))


def test_the_first_files_are_read():
    """The table of tokens and the bias a second time, the numbers of the positions."""
    params = random_model(22)
    weights = albert_weights(params)
    weights["predictions.decoder.weight"] = weights["albert.embeddings.word_embeddings.weight"].copy()
    weights["predictions.decoder.bias"] = weights["predictions.bias"].copy()
    weights["albert.embeddings.position_ids"] = np.arange(9)[None]
    trees.map(np.testing.assert_array_equal, load_albert(weights), params)


_FFN = "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("albert.embeddings.LayerNorm.bias"), r"missing albert\.embeddings\.LayerNorm\.bias"),
        (lambda w: w.pop(_FFN), rf"missing {re.escape(_FFN)}"),
        (lambda w: w.pop("albert.pooler.bias"), r"missing albert\.pooler\.bias"),
        (lambda w: w.pop("sop_classifier.classifier.bias"), r"missing sop_classifier\.classifier\.bias"),
        (lambda w: w.update({_FFN.replace("groups.0", "groups.1"): w[_FFN]}), r"unexpected albert\.encoder\.albert_layer_groups\.1"),
        (lambda w: w.update({_FFN.replace("layers.0", "layers.1"): w[_FFN]}), r"unexpected .*albert_layers\.1\.ffn\.weight"),
        (lambda w: w.update({"predictions.bias": np.ones(12)}), r"predictions\.bias of shape \(12,\), wants .*vocabulary = 13"),
        (lambda w: w.update({"predictions.dense.weight": np.ones((6, 7))}), r"predictions\.dense\.weight of shape \(6, 7\), wants"),
        (lambda w: w.update({"predictions.decoder.weight": np.ones((13, 6))}), r"decoder\.weight of its own, wants albert\.embeddings\.word"),
        (lambda w: w.clear(), r"missing"),
    ],
)
def test_weights_of_something_else_are_refused_by_name(spoil, message):
    weights = albert_weights(random_model(23))
    spoil(weights)
    with pytest.raises(ValueError, match=message) as caught:
        load_albert(weights)
    assert "\n" not in str(caught.value)


# --- Hugging Face's own -----------------------------------------------------------------------------------------------------


@pytest.fixture
def references():
    return pytest.importorskip("torch"), pytest.importorskip("transformers")


def hugging_face(torch, transformers, name, *, seed=0, hidden_act="gelu_new"):
    """A small random model in float64 with noise on every parameter, and its parameters as ours."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 17, "embedding_size": 7, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 10}
    config = transformers.AlbertConfig(**sizes, max_position_embeddings=11, hidden_act=hidden_act, attn_implementation="eager")
    theirs = getattr(transformers, name)(config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return theirs, load_albert({key: value.detach().numpy() for key, value in theirs.state_dict().items()})


@pytest.fixture
def padded():
    """Pairs of texts of different lengths; id 0 is padding, which Hugging Face's table never learns from."""
    rng = np.random.default_rng(0)
    lengths = np.array([10, 7, 4])
    real = np.arange(10) < lengths[:, None]
    ids = np.where(real, rng.integers(1, 17, size=(3, 10)), 0)
    segments = ((np.arange(10) >= np.array([5, 3, 4])[:, None]) & real).astype(int)
    labels = np.where(real & (rng.random((3, 10)) < 0.5), rng.integers(17, size=(3, 10)), -100)
    return {"ids": ids, "segments": segments, "mask": padding_mask(lengths, 10)}, real, labels, np.array([0, 1, 1])


def same_gradients(theirs, params_of_gradients):
    grads, named = albert_weights(params_of_gradients), dict(theirs.named_parameters())
    assert named.keys() == grads.keys()
    for key, parameter in named.items():
        np.testing.assert_allclose(grads[key], parameter.grad.numpy(), rtol=0, atol=1e-10, err_msg=key)


def tensors(torch, call, real):
    kinds, mask = torch.tensor(call["segments"]), torch.tensor(real.astype(int))
    return {"input_ids": torch.tensor(call["ids"]), "token_type_ids": kinds, "attention_mask": mask}


@pytest.mark.parity
@pytest.mark.parametrize(("hidden_act", "activation"), [("gelu_new", gelu), ("gelu", gelu_exact)])
def test_masked_language_modelling_equals_hugging_face_in_logits_and_every_gradient(references, padded, hidden_act, activation):
    torch, transformers = references
    theirs, params = hugging_face(torch, transformers, "AlbertForMaskedLM", hidden_act=hidden_act)
    assert params.pooler is None and params.pair is None
    call, real, labels, _ = padded
    expected = theirs(**tensors(torch, call, real), labels=torch.tensor(labels))
    expected.loss.backward()
    out, backward = albert(params, **call, **SETTINGS, activation=slot(activation))
    loss, loss_backward = cross_entropy(out.tokens, targets=labels)
    np.testing.assert_allclose(out.tokens[real], expected.logits.detach().numpy()[real], rtol=0, atol=1e-10)
    np.testing.assert_allclose(loss, expected.loss.item(), rtol=0, atol=1e-12)
    same_gradients(theirs, backward(BertOutput(None, None, None, loss_backward(np.float64(1)))))


@pytest.mark.parity
def test_pre_training_equals_hugging_face(references, padded):
    torch, transformers = references
    theirs, params = hugging_face(torch, transformers, "AlbertForPreTraining", seed=1)
    call, real, labels, order = padded
    expected = theirs(**tensors(torch, call, real), labels=torch.tensor(labels), sentence_order_label=torch.tensor(order))
    expected.loss.backward()
    out, backward = albert(params, **call, **SETTINGS)
    token_loss, token_backward = cross_entropy(out.tokens, targets=labels)
    pair_loss, pair_backward = cross_entropy(out.pair, targets=order)
    one = np.float64(1)
    np.testing.assert_allclose(out.pair, expected.sop_logits.detach().numpy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(token_loss + pair_loss, expected.loss.item(), rtol=0, atol=1e-12)
    same_gradients(theirs, backward(BertOutput(None, None, pair_backward(one), token_backward(one))))


@pytest.mark.parity
def test_hidden_states_and_pooler_equal_hugging_face(references, padded):
    torch, transformers = references
    theirs, params = hugging_face(torch, transformers, "AlbertModel", seed=2)
    assert params.pair is None and params.transform is None
    call, real, *_ = padded
    expected = theirs(**tensors(torch, call, real))
    out, backward = albert(params, **call, **SETTINGS)
    rng = np.random.default_rng(3)
    dhidden, dpooled = rng.normal(size=out.hidden.shape) * real[..., None], rng.normal(size=out.pooled.shape)
    ((expected.last_hidden_state * torch.tensor(dhidden)).sum() + (expected.pooler_output * torch.tensor(dpooled)).sum()).backward()
    np.testing.assert_allclose(out.hidden[real], expected.last_hidden_state.detach().numpy()[real], rtol=0, atol=1e-10)
    np.testing.assert_allclose(out.pooled, expected.pooler_output.detach().numpy(), rtol=0, atol=1e-10)
    same_gradients(theirs, backward(BertOutput(dhidden, dpooled, None, None)))


FORMS = {
    "AlbertForPreTraining": {},
    "AlbertForMaskedLM": {"pooler": None, "pair": None},
    "AlbertModel": {"pair": None, "transform": None, "bias": None},
}


@pytest.mark.parity
@pytest.mark.parametrize("name", FORMS)
def test_transformers_reads_what_we_write(references, name, tmp_path):
    torch, transformers = references
    theirs, _ = hugging_face(torch, transformers, name)
    sizes = {"vocabulary": 17, "d_embedding": 7, "d_model": 12, "num_heads": 4, "d_hidden": 10, "context": 11}
    params = random_model(24, **sizes)._replace(**FORMS[name])
    theirs.config.save_pretrained(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", albert_weights(params), metadata={"format": "pt"})
    read, info = getattr(transformers, name).from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float64, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = np.random.default_rng(0).integers(1, 17, size=(2, 6))
    out, expected = albert(params, ids=ids, **SETTINGS)[0], read(torch.tensor(ids))
    own, their_part = (out.hidden, expected.last_hidden_state) if name == "AlbertModel" else (out.tokens, expected[0])
    np.testing.assert_allclose(own, their_part.detach().numpy(), rtol=0, atol=1e-10)


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_hugging_faces_model_of_that_configuration_has_the_same_shapes(references, name):
    """Built without storage."""
    torch, transformers = references
    sizes, settings = PUBLISHED[name][0]
    config = transformers.AlbertConfig(
        vocab_size=sizes["vocabulary"], hidden_size=sizes["d_model"], num_hidden_layers=settings["num_layers"],
        num_attention_heads=sizes["num_heads"], intermediate_size=4 * sizes["d_model"],
    )  # fmt: skip
    assert (config.embedding_size, config.layer_norm_eps, config.hidden_act, config.max_position_embeddings) == (128, 1e-12, "gelu_new", 512)
    with torch.device("meta"):
        models = (transformers.AlbertModel, transformers.AlbertForMaskedLM, transformers.AlbertForPreTraining)
        assert tuple(model(config).num_parameters() for model in models) == count(**sizes)
