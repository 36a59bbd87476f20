"""T5, v1.0 and v1.1: equal to its formula and to Hugging Face's; one table of distances a stack; what is read once when it writes."""

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
from minitransformers.basics.gated_feed_forward import init_gated_feed_forward
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation.safetensors import write_safetensors
from minitransformers.models import t5 as module
from minitransformers.models.beam_search import beam_search
from minitransformers.models.configuration import Configuration
from minitransformers.models.decoding import generate
from minitransformers.models.t5 import (
    T5_BASE,
    T5_SMALL,
    T5_V1_1_BASE,
    T5_V1_1_SMALL,
    geglu_network,
    init_t5,
    load_t5,
    relu_network,
    t5,
    t5_stack,
    t5_step,
    t5_weights,
)

SIZES = {"vocabulary": 13, "d_model": 6, "num_layers": 2, "num_heads": 2, "d_head": 4, "d_hidden": 5, "num_buckets": 8}
V1_0 = ({}, {"num_heads": 2, "max_distance": 7})
V1_1 = (
    {"feed_forward": init_gated_feed_forward, "tied": False},
    {"num_heads": 2, "max_distance": 7, "feed_forward": geglu_network},
)
BOTH = pytest.mark.parametrize("version", [V1_0, V1_1], ids=["v1.0", "v1.1"])


def random_model(seed=0, **changes):
    rng = np.random.default_rng(seed)
    params = init_t5(rng, **{**SIZES, **changes}, std=0.4, dtype=np.float64)
    return trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params)


# Longer than max_distance, so that every bucket is in use.
SOURCE, TARGET = np.random.default_rng(1).integers(13, size=(3, 10)), np.random.default_rng(2).integers(13, size=(3, 9))
LENGTHS = np.array([10, 4, 1])
MASK = padding_mask(LENGTHS, 10)


def bucket(distance, *, causal, num_buckets, max_distance):
    """Number of the bucket of a key that stands so far behind the query, by a search for its upper end."""
    side = num_buckets if causal else num_buckets // 2
    start = side if distance < 0 and not causal else 0
    distance = max(distance, 0) if causal else abs(distance)
    near = side // 2
    if distance < near:
        return start + distance
    ends = [near * (max_distance / near) ** (k / (side - near)) for k in range(1, side - near + 1)]
    return start + next((near + k for k, end in enumerate(ends) if distance < end - 1e-9), side - 1)


def textbook(params, source, target, lengths=None, *, num_heads=2, max_distance=7, eps=1e-6, gated=False, tables=None):
    """T5 as a formula: one text, one head and one query at a time; tables are those of source, target and head."""
    of_source, of_target, head = (params.embedding.weight,) * 3 if tables is None else tables

    def norm(p, x):
        return p.gain * x / anp.sqrt(anp.mean(x * x, axis=-1, keepdims=True) + eps)

    def attention(p, x, memory, seen, table=None, causal=False):
        q, k, v = x @ p.query.weight, memory @ p.key.weight, memory @ p.value.weight
        d, heads = q.shape[1] // num_heads, []
        for h in range(num_heads):
            own, rows = slice(h * d, (h + 1) * d), []
            for i in range(len(x)):
                scores = k[: seen(i), own] @ q[i, own]
                if table is not None:
                    buckets = [bucket(i - j, causal=causal, num_buckets=len(table), max_distance=max_distance) for j in range(seen(i))]
                    scores = scores + table[buckets, h]
                e = anp.exp(scores)
                rows.append(e @ v[: seen(i), own] / anp.sum(e))
            heads.append(anp.stack(rows))
        return anp.concatenate(heads, axis=1) @ p.output.weight

    def work(p, x):
        if not gated:
            return anp.maximum(x @ p.up.weight, 0) @ p.down.weight
        gate = x @ p.gate.weight
        gate = gate / 2 * (1 + anp.tanh(anp.sqrt(2 / anp.pi) * (gate + 0.044715 * gate**3)))
        return (gate * (x @ p.up.weight)) @ p.down.weight

    out = []
    for text, (read, written) in enumerate(zip(source, target, strict=True)):
        length = len(read) if lengths is None else lengths[text]
        x, y = of_source[read], of_target[written]
        for b in params.encoder.blocks:
            normed = norm(b.attention_norm, x)
            x = x + attention(b.attention, normed, normed, lambda i, n=length: n, params.encoder.position.table)
            x = x + work(b.feed_forward, norm(b.feed_forward_norm, x))
        memory = norm(params.encoder.norm, x)
        for b in params.decoder.blocks:
            normed = norm(b.attention_norm, y)
            y = y + attention(b.attention, normed, normed, lambda i: i + 1, params.decoder.position.table, causal=True)
            y = y + attention(b.cross_attention, norm(b.cross_attention_norm, y), memory, lambda i, n=length: n)
            y = y + work(b.feed_forward, norm(b.feed_forward_norm, y))
        y = norm(params.decoder.norm, y)
        out.append(y @ head.T / anp.sqrt(y.shape[1]) if params.head is None else y @ params.head.weight)
    return anp.stack(out)


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own head"])
@pytest.mark.parametrize("gated", [False, True], ids=["relu", "gated"])
def test_equals_the_formula_in_outputs_and_gradients(gated, tied, padded):
    """All four pairs: whether the network is gated and whether the head is tied do not hang together."""
    changes = {"feed_forward": init_gated_feed_forward} if gated else {}
    params, dlogits = random_model(tied=tied, num_layers=2, **changes), np.random.default_rng(3).normal(size=(3, 9, 13))
    lengths, mask = (LENGTHS, MASK) if padded else (None, None)
    network = geglu_network if gated else relu_network
    logits, backward = t5(params, source=SOURCE, target=TARGET, num_heads=2, max_distance=7, mask=mask, feed_forward=network)
    np.testing.assert_allclose(logits, textbook(params, SOURCE, TARGET, lengths, gated=gated), rtol=0, atol=1e-10)
    values = [leaf for _, leaf in trees.leaves(params)]
    expected = autograd.grad(lambda own: anp.sum(dlogits * textbook(trees.unflatten(params, own), SOURCE, TARGET, lengths, gated=gated)))(values)
    for (path, own), theirs in zip(trees.leaves(backward(dlogits)), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_eps_is_that_of_every_norm(eps):
    params, call = random_model(), {"source": SOURCE, "num_heads": 2, "max_distance": 7, "eps": eps}
    logits, _ = t5(params, target=TARGET, **call)
    np.testing.assert_allclose(logits, textbook(params, SOURCE, TARGET, eps=eps), rtol=0, atol=1e-10)
    np.testing.assert_allclose(t5_step(params, TARGET, None, **call)[0], logits, rtol=0, atol=1e-12)


SMALL = {"d_model": 3, "num_heads": 2, "d_head": 2, "vocabulary": 5, "d_hidden": 3, "num_buckets": 4}
FEW = {"num_heads": 2, "max_distance": 4}


def test_gradients_of_v1_1_are_right():
    params = random_model(4, **SMALL, **V1_1[0])
    call = {"source": np.array([[1, 4, 1], [0, 2, 2]]), "target": np.array([[0, 3], [0, 1]]), "feed_forward": geglu_network}
    report = check_gradients(t5, params, **call, **FEW, second_opinion=False)
    assert report.passed, str(report)


USES = ("source", "target", "head")


def gradient_of_each_use(params, source, target, dlogits, **config):
    """What the table would get as the source's, as the target's and as the head, if there were three of them."""
    tables = (params.embedding.weight,) * 3
    found = autograd.grad(lambda own: anp.sum(dlogits * textbook(params, source, target, tables=own, **config)))(tables)
    return dict(zip(USES, found, strict=True))


def test_a_tied_table_has_the_sum_of_three_gradients_and_an_untied_one_of_two():
    dlogits = np.random.default_rng(5).normal(size=(3, 9, 13))
    for tied in (True, False):
        params = random_model(6, tied=tied)
        parts = gradient_of_each_use(params, SOURCE, TARGET, dlogits)
        assert [np.abs(parts[use]).max() > 0.05 for use in USES] == [True, True, tied]
        _, backward = t5(params, source=SOURCE, target=TARGET, num_heads=2, max_distance=7)
        grads = backward(dlogits)
        np.testing.assert_allclose(grads.embedding.weight, sum(parts.values()), rtol=0, atol=1e-10)
        assert (grads.head is None) is tied


@pytest.mark.parametrize("forgotten", USES)
def test_a_table_that_forgets_one_of_its_uses_is_refused(forgotten):
    params, source = random_model(7, **{**SMALL, "num_layers": 1}), np.array([[1, 4, 1]])

    def forgetful(params, *, target):
        logits, backward = t5(params, source=source, target=target, **FEW)

        def wrong(dlogits):
            grads = backward(dlogits)
            part = gradient_of_each_use(params, source, target, dlogits, max_distance=4)[forgotten]
            return grads._replace(embedding=Embedding(grads.embedding.weight - part))

        return logits, wrong

    report = check_gradients(forgetful, params, target=np.array([[0, 3]]), second_opinion=False)
    assert not report.passed
    assert report.worst.path == "params.embedding.weight"


def test_one_table_of_distances_hears_from_every_layer():
    """Its gradient is the sum of what the layers would give tables of their own, by differences of a table put into one layer."""
    params, dout, step = random_model(8), np.random.default_rng(9).normal(size=(3, 10, 6)), 1e-6
    x = np.random.default_rng(10).normal(size=(3, 10, 6))

    def stack(tables):
        """The encoder with a table for each layer."""
        used = iter(tables)

        def block(own, x, bias, *, eps):
            bias, _ = module.t5_bias(module.T5Bias(next(used)), num_queries=10, num_keys=10, causal=False, max_distance=7)
            return module.t5_encoder_block(own, x, bias, num_heads=2, eps=eps)

        return t5_stack(params.encoder, x, block=block, causal=False, max_distance=7, eps=1e-6)[0]

    table = params.encoder.position.table
    _, backward = t5_stack(params.encoder, x, block=partial(module.t5_encoder_block, num_heads=2), causal=False, max_distance=7, eps=1e-6)
    shared, direction = backward(dout)[0].position.table, np.random.default_rng(11).normal(size=table.shape)
    each = [
        np.sum(dout * (stack([t + step * direction * (i == layer) for i, t in enumerate([table] * 2)])
                       - stack([t - step * direction * (i == layer) for i, t in enumerate([table] * 2)]))) / (2 * step)
        for layer in range(2)
    ]  # fmt: skip
    assert min(map(abs, each)) > 0.01
    np.testing.assert_allclose(np.sum(shared * direction), sum(each), rtol=1e-7)


def test_maps_to_queries_start_smaller_by_the_root_of_d_head():
    """So that scores, which nothing divides, start at size 1."""
    params = init_t5(np.random.default_rng(12), **{**SIZES, "d_model": 64, "d_head": 16, "num_heads": 4})
    for block in params.decoder.blocks:
        assert abs(block.attention.query.weight.std() * (64 * 16) ** 0.5 - 1) < 0.1
        assert abs(block.cross_attention.query.weight.std() * (64 * 16) ** 0.5 - 1) < 0.1
        assert abs(block.attention.key.weight.std() * 8 - 1) < 0.1
        assert abs(block.attention.output.weight.std() * 8 - 1) < 0.1
        assert abs(block.feed_forward.up.weight.std() * 8 - 1) < 0.2
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}


@BOTH
def test_with_a_head_of_its_own_it_starts_undecided_and_tied_it_starts_by_repeating(version):
    """The stream carries a token's row up to the head; where that is the table again, the row meets itself."""
    sizes = {"vocabulary": 300, "d_model": 64, "num_layers": 2, "num_heads": 4, "d_head": 16, "d_hidden": 128, **version[0]}
    params = init_t5(np.random.default_rng(13), **sizes)
    assert abs(params.embedding.weight.std() - 1) < 0.05
    assert abs(params.encoder.position.table.std() * 8 - 1) < 0.2
    ids, targets = np.random.default_rng(14).integers(300, size=(2, 8, 32))
    logits, _ = t5(params, source=ids, target=ids, num_heads=4, feed_forward=version[1].get("feed_forward", relu_network))
    if version is V1_1:
        loss, _ = cross_entropy(logits, targets=targets)
        assert abs(float(loss) - np.log(300) - 0.5) < 0.15   # logits of variance 1: log E exp(z) is 1/2 above 0
    else:
        assert np.take_along_axis(logits, ids[..., None], -1).mean() > 3
    small = init_t5(np.random.default_rng(13), **sizes, std=0.02)
    assert all(abs(leaf.std() / 0.02 - 1) < 0.2 for path, leaf in trees.leaves(small) if path.endswith(("weight", "table")))


SET = {"num_heads": 2, "max_distance": 7}


def test_a_position_knows_the_target_up_to_itself_and_all_of_the_source():
    params = random_model(15)
    logits, _ = t5(params, source=SOURCE, target=TARGET, **SET)
    for t in range(9):
        other = TARGET.copy()
        other[:, t] = (other[:, t] + 1) % 13
        changed, _ = t5(params, source=SOURCE, target=other, **SET)
        np.testing.assert_array_equal(changed[:, :t], logits[:, :t])
        assert (np.abs(changed - logits)[:, t:].max(axis=-1) > 1e-6).all()
    for t in range(10):
        other = SOURCE.copy()
        other[:, t] = (other[:, t] + 1) % 13
        assert (np.abs(t5(params, source=other, target=TARGET, **SET)[0] - logits).max(axis=-1) > 1e-6).all()
    assert np.abs(t5(params, source=SOURCE[:, ::-1], target=TARGET, **SET)[0] - logits).max() > 1e-3  # order is heard


def test_padding_of_the_source_changes_nothing():
    params, dlogits = random_model(9), np.random.default_rng(10).normal(size=(1, 9, 13))
    logits, backward = t5(params, source=SOURCE, target=TARGET, **SET, mask=MASK)
    for text, length in enumerate(LENGTHS):
        one = slice(text, text + 1)
        alone, alone_backward = t5(params, source=SOURCE[one, :length], target=TARGET[one], **SET)
        np.testing.assert_allclose(logits[one], alone, rtol=0, atol=1e-12)
        dbatch = np.zeros_like(logits)
        dbatch[one] = dlogits
        trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), backward(dbatch), alone_backward(dlogits))
    assert np.abs(t5(params, source=SOURCE, target=TARGET, **SET)[0] - logits)[1:].max() > 1e-3  # without the mask it is read


def test_a_source_of_nothing_but_padding_stays_finite():
    params = random_model(11)
    logits, backward = t5(params, source=SOURCE, target=TARGET, **SET, mask=padding_mask(np.array([10, 0, 3]), 10))
    assert np.isfinite(logits).all()
    assert all(np.isfinite(leaf).all() for _, leaf in trees.leaves(backward(np.ones_like(logits))))


def count(vocabulary, d_model, num_layers, num_heads, d_head, d_hidden, feed_forward=None, tied=True, num_buckets=32):
    attention, work = 4 * d_model * num_heads * d_head, (3 if feed_forward else 2) * d_model * d_hidden
    layers = num_layers * (3 * attention + 2 * work + 5 * d_model)
    return vocabulary * d_model * (1 if tied else 2) + layers + 2 * d_model + 2 * num_buckets * num_heads


PUBLISHED = {
    "T5_SMALL": (T5_SMALL, 60_506_624),
    "T5_BASE": (T5_BASE, 222_903_552),
    "T5_V1_1_SMALL": (T5_V1_1_SMALL, 76_961_152),
    "T5_V1_1_BASE": (T5_V1_1_BASE, 247_577_856),
}


@BOTH
def test_the_formula_of_the_count_is_that_of_the_parameters(version):
    assert trees.count_parameters(random_model(**version[0])) == count(**SIZES, **version[0])


def test_named_configurations_have_the_published_number_of_parameters_and_are_explained():
    named = {name: found for name, found in vars(module).items() if isinstance(found, Configuration)}
    assert named == {name: configuration for name, (configuration, _) in PUBLISHED.items()}
    rows = [line.split() for line in inspect.getdoc(inspect.unwrap(t5)).splitlines() if re.match(r"\s+T5_[A-Z0-9_]+\s", line)]
    assert [row[0] for row in rows] == list(named)
    for name, layers, d_model, heads, d_head, d_hidden, vocabulary, network, *head, parameters in rows:
        sizes, settings = named[name]
        shown = dict(zip(SIZES, map(int, (vocabulary, d_model, layers.split("+")[0], heads, d_head, d_hidden)), strict=False))
        later = {"feed_forward": init_gated_feed_forward, "tied": False} if network == "GeGLU" else {}
        assert sizes == shown | later
        assert " ".join(head) == ("its own" if later else "tied")
        assert settings == {"num_heads": sizes["num_heads"]} | ({"feed_forward": geglu_network} if later else {})
        assert count(**sizes) == PUBLISHED[name][1] == int(parameters.replace(",", ""))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_named_configuration_runs(name):
    sizes, settings = PUBLISHED[name][0]
    params = init_t5(np.random.default_rng(0), **{**sizes, "vocabulary": 7, "d_model": 12, "num_layers": 1, "d_head": 4, "d_hidden": 5})
    source, target = np.array([[1, 6, 2]]), np.array([[0, 4]])
    logits, _ = t5(params, source=source, target=target, **settings)
    np.testing.assert_allclose(t5_step(params, target, None, source=source, **settings)[0], logits, rtol=0, atol=1e-5)


@BOTH
@pytest.mark.parametrize("pieces", [(1,) * 9, (2, 6, 1), (9,)])
@pytest.mark.parametrize("mask", [None, MASK, MASK[1:2]], ids=["whole", "padded", "one mask for all"])
def test_step_by_step_is_the_whole_pass(pieces, mask, version):
    params, call = random_model(16, **version[0]), {"source": SOURCE, "mask": mask, **version[1]}
    whole, _ = t5(params, target=TARGET, **call)
    state, logits, start = None, [], 0
    for size in pieces:
        part, state = t5_step(params, TARGET[:, start : start + size], state, **call)
        logits.append(part)
        start += size
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, rtol=0, atol=1e-10)
    assert state.length == 9


def test_the_source_is_read_once(monkeypatch):
    """The encoder runs at the first step alone, and the memory's keys and values are the same arrays ever after."""
    params, encoded = random_model(17), []
    monkeypatch.setattr(module, "t5_stack", lambda *args, **config: encoded.append(1) or t5_stack(*args, **config))
    step = partial(t5_step, params, source=SOURCE, mask=MASK, **SET)
    _, first = step(TARGET[:, :1], None)
    _, second = step(TARGET[:, 1:2], first)
    assert encoded == [1]
    for (own, held), (_, before) in zip(second.blocks, first.blocks, strict=True):
        assert held.key is before.key and held.value is before.value
        assert held.key.shape == (3, 2, 10, 4)
        assert own.keys.shape == (3, 2, 2, 4)
    logits, _ = t5_step(params, TARGET[:, 2:], second, **SET)  # neither source nor mask are needed any more
    whole, _ = t5(params, source=SOURCE, target=TARGET, mask=MASK, **SET)
    np.testing.assert_allclose(logits, whole[:, 2:], rtol=0, atol=1e-10)


def test_a_state_can_be_continued_in_two_ways():
    params, call = random_model(18), {"source": SOURCE, **SET}
    _, state = t5_step(params, TARGET[:, :2], None, **call)
    for tail in (TARGET[:, 2:], TARGET[:, ::-1][:, 2:]):
        logits, _ = t5_step(params, tail, state, **SET)
        whole, _ = t5(params, target=np.concatenate([TARGET[:, :2], tail], axis=1), **call)
        np.testing.assert_allclose(logits, whole[:, 2:], rtol=0, atol=1e-10)


def test_greedy_writing_is_one_beam_and_what_the_whole_pass_would_say():
    params, source, mask = random_model(19), SOURCE[1:2], MASK[1:2]
    step = partial(t5_step, params, source=source, mask=mask, **SET)
    written = list(generate(step, prompt_ids=np.array([0]), num_tokens=12, temperature=0.0, rng=np.random.default_rng(0)))
    (beam,) = beam_search(step, np.array([0]), num_tokens=12, num_beams=1)
    assert written == beam.ids
    logits, _ = t5(params, source=source, target=np.array([[0, *written[:-1]]]), mask=mask, **SET)
    assert written == logits[0].argmax(axis=-1).tolist()


def test_beams_carry_their_source_along():
    """Each text that a search finds has the probability that the whole pass gives it."""
    params, source, mask = random_model(20), SOURCE[1:2], MASK[1:2]
    step = partial(t5_step, params, source=source, mask=mask, **SET)
    found = beam_search(step, np.array([0]), num_tokens=5, num_beams=3, end=1)
    assert len(found) == 3
    for text in found:
        logits, _ = t5(params, source=source, target=np.array([[0, *text.ids[:-1]]]), mask=mask, **SET)
        log_probability = log_softmax(logits[0])[0][np.arange(len(text.ids)), text.ids].sum()
        np.testing.assert_allclose(text.log_probability, log_probability, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads: got 0"),
        ({"num_heads": 3}, "num_heads: got 3"),
        ({"source": np.array([[0, 13]] * 3)}, r"source: got ids from 0 to 13, wants 0 to 12"),
        ({"target": np.array([[-1, 3]] * 3)}, "target: got ids from -1 to 3"),
        ({"source": np.zeros((3, 10))}, "source: got float64"),
        ({"target": np.zeros((3, 0), int)}, "target: got shape"),
        ({"target": TARGET[:2]}, "target: got shape"),
        ({"eps": -1.0}, "eps: got -1.0"),
        ({"max_distance": 2}, "max_distance: got 2"),
        ({"feed_forward": "gated"}, "feed_forward: got 'gated', wants a function"),
        ({"mask": padding_mask(LENGTHS, 11)}, "mask: got shape"),
        ({"mask": np.ones((3, 1, 10, 10), bool)}, "mask: got shape"),
        ({"mask": np.ones((3, 3, 1, 10), bool)}, "mask: got shape"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"source": SOURCE, "target": TARGET, **SET, **changes}
    with pytest.raises(ValueError, match=message):
        t5(random_model(), **call)


@pytest.mark.parametrize(("version", "network", "kinds"), [(V1_0, geglu_network, ("Gated", "")), (V1_1, relu_network, ("", "Gated"))], ids=["v1.0", "v1.1"])
def test_the_network_of_the_other_version_is_refused(version, network, kinds):
    """A plain network could read a gated one's parameters, and would leave the gate out."""
    params, call = random_model(**version[0]), {"source": SOURCE, **version[1], "feed_forward": network}
    message = "feed_forward: got a network of {}FeedForward, wants one of {}FeedForward, as params hold".format(*kinds)
    with pytest.raises(ValueError, match=message):
        t5(params, target=TARGET, **call)
    with pytest.raises(ValueError, match=message):
        t5_step(params, TARGET, None, **call)


def test_a_step_without_a_source_and_a_state_of_another_model_are_refused():
    params = random_model(21)
    _, state = t5_step(params, TARGET, None, source=SOURCE, **SET)
    for model, ids, past, call, message in (
        (params, TARGET, None, {}, "source: got None, wants what the decoder reads, at the first step"),
        (params, TARGET, None, {"source": SOURCE + 13}, "source: got ids from"),
        (params, TARGET + 13, state, {}, "ids: got ids from"),
        (random_model(num_layers=3), TARGET, state, {}, "state: got that of a model of 2 blocks, wants that of this model, of 3"),
        (params, TARGET, [], {"source": SOURCE}, "state: got list, wants T5State"),
    ):
        with pytest.raises(ValueError, match=message):
            t5_step(model, ids, past, **SET, **call)


@pytest.mark.parametrize("tied", [True, False])
@BOTH
def test_weights_survive_the_way_out_and_in(version, tied, tmp_path):
    params = random_model(22, **{**version[0], "tied": tied})
    params = params._replace(decoder=params.decoder._replace(blocks=[*params.decoder.blocks, params.decoder.blocks[0]]))
    weights = t5_weights(params)
    assert weights["decoder.block.2.layer.1.EncDecAttention.q.weight"].shape == (8, 6)
    assert ("lm_head.weight" in weights) is not tied
    assert ("encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in weights) is (version is V1_1)
    write_safetensors(tmp_path / "model.safetensors", weights)
    for source in (weights, tmp_path):
        read = load_t5(source)
        trees.map(np.testing.assert_array_equal, read, params)
        assert all(leaf.flags.c_contiguous for _, leaf in trees.leaves(read))


def test_repeated_tables_are_one_and_what_was_never_read_does_not_matter():
    params = random_model(23)
    weights = t5_weights(params)
    for name in ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        weights[name] = weights["shared.weight"].copy()
    weights["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.ones((8, 2))
    trees.map(np.testing.assert_array_equal, load_t5(weights), params)
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"] + 1
    with pytest.raises(ValueError, match=r"an encoder\.embed_tokens\.weight of its own, wants shared\.weight again"):
        load_t5(weights)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("shared.weight"), r"missing shared\.weight"),
        (lambda w: w.pop("encoder.block.1.layer.1.DenseReluDense.wi.weight"), r"missing encoder\.block\.1\.layer\.1\.DenseReluDense\.wi\.weight"),
        (lambda w: w.update({"encoder.block.0.layer.0.SelfAttention.q.bias": np.ones(8)}), r"unexpected .*SelfAttention\.q\.bias"),
        (lambda w: w.update({"encoder.final_layer_norm.weight": np.ones(7)}), r"final_layer_norm\.weight of shape \(7,\), wants .*d_model = 6"),
        (lambda w: w.update({"encoder.block.0.layer.0.SelfAttention.k.weight": np.ones((7, 6))}), r"SelfAttention\.k\.weight of shape \(7, 6\), wants"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("decoder.block")], r"start with decoder\.block\.0\."),
    ],
)
def test_weights_of_something_else_are_refused_by_name(spoil, message):
    weights = t5_weights(random_model(24))
    spoil(weights)
    with pytest.raises(ValueError, match=message) as caught:
        load_t5(weights)
    assert "\n" not in str(caught.value)


# --- Hugging Face's own -----------------------------------------------------------------------------------------------------


@pytest.fixture
def exact(monkeypatch):
    """PyTorch and transformers, whose norms are held in float64: as they are, they take their variance in float32."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from transformers.models.t5 import modeling_t5

    def norm(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(modeling_t5.T5LayerNorm, "forward", norm)
    return torch, transformers


def hugging_face(torch, transformers, version, *, seed=0, decoder_layers=3):
    """A small random model in float64 with noise on every parameter, and its parameters as ours.

    A head of its own is put in by hand: this library always ties, and reads tie_word_embeddings as whether to scale.
    """
    torch.manual_seed(seed)
    tied = version is V1_0
    sizes = {"vocab_size": 17, "d_model": 12, "d_kv": 5, "d_ff": 9, "num_layers": 2, "num_decoder_layers": decoder_layers, "num_heads": 2}
    config = transformers.T5Config(
        **sizes, relative_attention_num_buckets=8, relative_attention_max_distance=7, feed_forward_proj="relu" if tied else "gated-gelu",
        tie_word_embeddings=tied, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.T5ForConditionalGeneration(config).double().eval()
    if not tied:
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(17, 12, dtype=torch.float64) / 3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return theirs, load_t5({name: value.detach().numpy() for name, value in theirs.state_dict().items()})


@pytest.mark.parity
@BOTH
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_logits_and_every_gradient_equal_hugging_face(exact, version, padded):
    torch, transformers = exact
    theirs, params = hugging_face(torch, transformers, version)
    rng, lengths = np.random.default_rng(0), np.array([11, 4, 2])
    source, target, labels = rng.integers(17, size=(3, 11)), rng.integers(17, size=(3, 9)), rng.integers(17, size=(3, 9))
    labels[1, 3:] = -100
    mask = padding_mask(lengths, 11) if padded else None

    shown = None if mask is None else torch.tensor(mask[:, 0, 0].astype(int))
    expected = theirs(input_ids=torch.tensor(source), attention_mask=shown, decoder_input_ids=torch.tensor(target)).logits
    torch.nn.functional.cross_entropy(expected.reshape(-1, 17), torch.tensor(labels).reshape(-1)).backward()
    logits, backward = t5(params, source=source, target=target, mask=mask, **version[1])
    grads = t5_weights(backward(cross_entropy(logits, targets=labels)[1](np.float64(1))))

    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-10)
    named = dict(theirs.named_parameters())
    assert named.keys() == grads.keys()
    for name, parameter in named.items():
        np.testing.assert_allclose(grads[name], parameter.grad.numpy(), rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parity
@BOTH
def test_as_it_is_hugging_face_differs_by_its_float32_alone(version):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs, params = hugging_face(torch, transformers, version)
    source, target = np.random.default_rng(0).integers(17, size=(2, 3, 10))
    logits, _ = t5(params, source=source, target=target, **version[1])
    expected = theirs(input_ids=torch.tensor(source), decoder_input_ids=torch.tensor(target)).logits
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parity
def test_decoding_equals_hugging_faces_own(exact):
    """Greedy, token by token, each with its own caches."""
    torch, transformers = exact
    theirs, params = hugging_face(torch, transformers, V1_0, decoder_layers=2)  # its cache has as many layers as its encoder
    source = np.array([[3, 1, 4, 1, 5, 9, 2]])
    expected = theirs.generate(torch.tensor(source), max_new_tokens=15, do_sample=False, num_beams=1, eos_token_id=None, decoder_start_token_id=0)[0, 1:]
    step = partial(t5_step, params, source=source, **SET)
    written = generate(step, prompt_ids=np.array([0]), num_tokens=15, temperature=0.0, rng=np.random.default_rng(0))
    assert list(written) == expected.tolist()


@pytest.mark.parity
def test_transformers_reads_what_we_write(exact, tmp_path):
    torch, transformers = exact
    theirs, params = hugging_face(torch, transformers, V1_0, seed=1)
    params = trees.map(lambda leaf: leaf * 1.1, params)
    theirs.config.save_pretrained(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", t5_weights(params), metadata={"format": "pt"})
    read = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float64)
    source, target = np.random.default_rng(0).integers(17, size=(2, 2, 6))
    expected = read(input_ids=torch.tensor(source), decoder_input_ids=torch.tensor(target)).logits.detach().numpy()
    np.testing.assert_allclose(t5(params, source=source, target=target, **SET)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_hugging_faces_model_of_that_configuration_has_the_same_shapes(name):
    """Built without storage. This library always ties: what has a head of its own has as many numbers more as the table."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes, parameters = PUBLISHED[name][0].sizes, PUBLISHED[name][1]
    tied = sizes.get("tied", True)
    config = transformers.T5Config(
        vocab_size=sizes["vocabulary"], d_model=sizes["d_model"], num_layers=sizes["num_layers"], num_heads=sizes["num_heads"],
        d_kv=sizes["d_head"], d_ff=sizes["d_hidden"], feed_forward_proj="relu" if tied else "gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        theirs = transformers.T5ForConditionalGeneration(config).num_parameters()
    assert theirs + (0 if tied else sizes["vocabulary"] * sizes["d_model"]) == parameters
