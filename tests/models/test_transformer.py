"""The Transformer of 2017: equal to its formula and to torch.nn.Transformer; three uses of one table; what is read once when it writes."""

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
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation.safetensors import write_safetensors
from minitransformers.models import transformer as module
from minitransformers.models.beam_search import beam_search
from minitransformers.models.configuration import Configuration
from minitransformers.models.decoding import generate
from minitransformers.models.transformer import (
    TRANSFORMER_BASE,
    TRANSFORMER_BIG,
    init_transformer,
    load_transformer,
    transformer,
    transformer_encoder,
    transformer_step,
    transformer_weights,
)

SIZES = {"vocabulary": 13, "d_model": 8, "num_layers": 2, "num_heads": 2, "d_hidden": 5}


def random_model(seed=0, **changes):
    rng = np.random.default_rng(seed)
    params = init_transformer(rng, **{**SIZES, **changes}, dtype=np.float64)
    return trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params)


SOURCE, TARGET = np.random.default_rng(1).integers(13, size=(3, 6)), np.random.default_rng(2).integers(13, size=(3, 4))
LENGTHS = np.array([6, 4, 1])
MASK = padding_mask(LENGTHS, 6)


def textbook(params, source, target, num_heads, lengths=None, *, tables=None, eps=1e-5):
    """The paper's equations: one text, one head and one query at a time; tables are those of source, target and head."""
    of_source, of_target, head = (params.embedding.weight,) * 3 if tables is None else tables

    def inputs(table, ids):
        d = table.shape[1]
        waves = np.zeros((len(ids), d))
        for p in range(len(ids)):
            for m in range(d // 2):
                waves[p, 2 * m], waves[p, 2 * m + 1] = np.sin(p / 10_000 ** (2 * m / d)), np.cos(p / 10_000 ** (2 * m / d))
        return table[ids] * np.sqrt(d) + waves

    def norm(p, x):
        centred = x - anp.mean(x, axis=-1, keepdims=True)
        return p.gain * centred / anp.sqrt(anp.mean(centred**2, axis=-1, keepdims=True) + eps) + p.bias

    def mapped(p, x):
        return x @ p.weight if p.bias is None else x @ p.weight + p.bias

    def attention(p, x, memory, seen):
        q, k, v = mapped(p.query, x), mapped(p.key, memory), mapped(p.value, memory)
        d, heads = q.shape[1] // num_heads, []
        for h in range(num_heads):
            own, rows = slice(h * d, (h + 1) * d), []
            for i in range(len(x)):
                e = anp.exp(k[: seen(i), own] @ q[i, own] / anp.sqrt(d))
                rows.append(e @ v[: seen(i), own] / anp.sum(e))
            heads.append(anp.stack(rows))
        return mapped(p.output, anp.concatenate(heads, axis=1))

    def work(p, x):
        return mapped(p.down, anp.maximum(mapped(p.up, x), 0))

    out = []
    for text, (read, written) in enumerate(zip(source, target, strict=True)):
        length = len(read) if lengths is None else lengths[text]
        x, y = inputs(of_source, read), inputs(of_target, written)
        for b in params.encoder:
            x = norm(b.attention_norm, x + attention(b.attention, x, x, lambda i, n=length: n))
            x = norm(b.feed_forward_norm, x + work(b.feed_forward, x))
        for b in params.decoder:
            y = norm(b.attention_norm, y + attention(b.attention, y, y, lambda i: i + 1))
            y = norm(b.cross_attention_norm, y + attention(b.cross_attention, y, x, lambda i, n=length: n))
            y = norm(b.feed_forward_norm, y + work(b.feed_forward, y))
        out.append(y @ head.T)
    return anp.stack(out)


@pytest.mark.parametrize("bias", [False, True], ids=["as in the paper", "biases in attention"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_equals_the_formula_in_outputs_and_gradients(bias, padded):
    params, dlogits = random_model(bias=bias), np.random.default_rng(3).normal(size=(3, 4, 13))
    lengths, mask = (LENGTHS, MASK) if padded else (None, None)
    logits, backward = transformer(params, source=SOURCE, target=TARGET, num_heads=2, mask=mask)
    np.testing.assert_allclose(logits, textbook(params, SOURCE, TARGET, 2, lengths), rtol=0, atol=1e-10)
    values = [leaf for _, leaf in trees.leaves(params)]
    expected = autograd.grad(lambda own: anp.sum(dlogits * textbook(trees.unflatten(params, own), SOURCE, TARGET, 2, lengths)))(values)
    for (path, own), theirs in zip(trees.leaves(backward(dlogits)), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_eps_is_that_of_every_norm(eps):
    params, call = random_model(), {"source": SOURCE, "num_heads": 2, "eps": eps}
    logits, _ = transformer(params, target=TARGET, **call)
    np.testing.assert_allclose(logits, textbook(params, SOURCE, TARGET, 2, eps=eps), rtol=0, atol=1e-10)
    np.testing.assert_allclose(transformer_step(params, TARGET, None, **call)[0], logits, rtol=0, atol=1e-12)


USES = ("source", "target", "head")
SMALL = {"d_model": 4, "num_heads": 2, "vocabulary": 5, "num_layers": 1, "d_hidden": 3}


def gradient_of_each_use(params, source, target, dlogits):
    """What the table would get as the source's, as the target's and as the head, if there were three of them."""
    tables = (params.embedding.weight,) * 3
    return dict(zip(USES, autograd.grad(lambda own: anp.sum(dlogits * textbook(params, source, target, 2, tables=own)))(tables), strict=True))


def test_the_shared_table_has_the_sum_of_three_gradients():
    params, dlogits = random_model(4), np.random.default_rng(5).normal(size=(3, 4, 13))
    parts = gradient_of_each_use(params, SOURCE, TARGET, dlogits)
    assert all(np.abs(part).max() > 0.05 for part in parts.values())
    _, backward = transformer(params, source=SOURCE, target=TARGET, num_heads=2)
    np.testing.assert_allclose(backward(dlogits).embedding.weight, sum(parts.values()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("forgotten", USES)
def test_a_table_that_forgets_one_of_its_uses_is_refused(forgotten):
    params, source = random_model(6, **SMALL), np.array([[1, 4, 1]])

    def forgetful(params, *, target):
        logits, backward = transformer(params, source=source, target=target, num_heads=2)

        def wrong(dlogits):
            grads = backward(dlogits)
            return grads._replace(embedding=Embedding(grads.embedding.weight - gradient_of_each_use(params, source, target, dlogits)[forgotten]))

        return logits, wrong

    report = check_gradients(forgetful, params, target=np.array([[0, 3]]), second_opinion=False)
    assert not report.passed
    assert report.worst.path == "params.embedding.weight"


def test_a_position_knows_the_target_up_to_itself_and_all_of_the_source():
    params = random_model(8)
    logits, _ = transformer(params, source=SOURCE, target=TARGET, num_heads=2)
    for t in range(4):
        other = TARGET.copy()
        other[:, t] = (other[:, t] + 1) % 13
        changed, _ = transformer(params, source=SOURCE, target=other, num_heads=2)
        np.testing.assert_array_equal(changed[:, :t], logits[:, :t])
        assert (np.abs(changed - logits)[:, t:].max(axis=-1) > 1e-6).all()
    for t in range(6):
        other = SOURCE.copy()
        other[:, t] = (other[:, t] + 1) % 13
        assert (np.abs(transformer(params, source=other, target=TARGET, num_heads=2)[0] - logits).max(axis=-1) > 1e-6).all()
    assert np.abs(transformer(params, source=SOURCE[:, ::-1], target=TARGET, num_heads=2)[0] - logits).max() > 1e-3  # order is heard


def test_padding_of_the_source_changes_nothing():
    params, dlogits = random_model(9), np.random.default_rng(10).normal(size=(1, 4, 13))
    logits, backward = transformer(params, source=SOURCE, target=TARGET, num_heads=2, mask=MASK)
    for text, length in enumerate(LENGTHS):
        one = slice(text, text + 1)
        alone, alone_backward = transformer(params, source=SOURCE[one, :length], target=TARGET[one], num_heads=2)
        np.testing.assert_allclose(logits[one], alone, rtol=0, atol=1e-12)
        dbatch = np.zeros_like(logits)
        dbatch[one] = dlogits
        trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), backward(dbatch), alone_backward(dlogits))
    assert np.abs(transformer(params, source=SOURCE, target=TARGET, num_heads=2)[0] - logits)[1:].max() > 1e-3  # without the mask it is read


def test_a_source_of_nothing_but_padding_stays_finite():
    params = random_model(11)
    logits, backward = transformer(params, source=SOURCE, target=TARGET, num_heads=2, mask=padding_mask(np.array([6, 0, 3]), 6))
    assert np.isfinite(logits).all()
    assert all(np.isfinite(leaf).all() for _, leaf in trees.leaves(backward(np.ones_like(logits))))


def test_the_stream_starts_at_the_size_of_the_waves():
    sizes = {"vocabulary": 500, "d_model": 64, "num_layers": 2, "num_heads": 4}
    params = init_transformer(np.random.default_rng(12), **sizes)
    assert abs(params.embedding.weight.std() * 8 - 1) < 0.05
    for block in params.decoder:
        assert block.feed_forward.up.weight.shape == (64, 256)
        assert abs(block.feed_forward.down.weight.std() * 16 - 1) < 0.05
        assert abs(block.cross_attention.output.weight.std() * 8 - 1) < 0.05
        assert block.attention.query.bias is None and block.cross_attention.key.bias is None
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}
    ids, targets = np.random.default_rng(13).integers(500, size=(2, 8, 32))
    loss, _ = cross_entropy(transformer(params, source=ids, target=ids, num_heads=4)[0], targets=targets)
    assert abs(float(loss) - np.log(500) - 0.5) < 0.1        # logits of variance 1: log E exp(z) is 1/2 above 0
    small = init_transformer(np.random.default_rng(12), **sizes, std=0.02, bias=True)
    assert all(abs(leaf.std() / 0.02 - 1) < 0.1 for path, leaf in trees.leaves(small) if path.endswith("weight"))
    assert not small.encoder[0].attention.query.bias.any()


def count(vocabulary, d_model, num_layers, num_heads, d_hidden, bias=False):
    attention = 4 * d_model**2 + (4 * d_model if bias else 0)
    work, norm = 2 * d_model * d_hidden + d_hidden + d_model, 2 * d_model
    return vocabulary * d_model + num_layers * (3 * attention + 2 * work + 5 * norm)


PUBLISHED = {"TRANSFORMER_BASE": (TRANSFORMER_BASE, 63_045_632, 65e6), "TRANSFORMER_BIG": (TRANSFORMER_BIG, 214_171_648, 213e6)}


@pytest.mark.parametrize("bias", [False, True])
def test_the_formula_of_the_count_is_that_of_the_parameters(bias):
    assert trees.count_parameters(random_model(bias=bias)) == count(**SIZES, bias=bias)


def test_named_configurations_are_counted_and_explained():
    named = {name: found for name, found in vars(module).items() if isinstance(found, Configuration)}
    assert named == {name: configuration for name, (configuration, *_) in PUBLISHED.items()}
    rows = [line.split() for line in inspect.getdoc(inspect.unwrap(transformer)).splitlines() if re.match(r"\s+TRANSFORMER_", line)]
    assert [row[0] for row in rows] == list(named)
    for name, layers, d_model, heads, d_hidden, vocabulary, parameters in rows:
        sizes, settings = named[name]
        _, exact, stated = PUBLISHED[name]
        assert sizes == dict(zip(SIZES, map(int, (vocabulary, d_model, layers.split("+")[0], heads, d_hidden)), strict=True))
        assert settings == {"num_heads": sizes["num_heads"]}
        assert count(**sizes) == exact == int(parameters.replace(",", ""))
        assert abs(exact / stated - 1) < 0.035               # the paper's, of "about 37000" tokens


@pytest.mark.parametrize("pieces", [(1,) * 4, (2, 1, 1), (4,)])
@pytest.mark.parametrize("mask", [None, MASK, MASK[1:2]], ids=["whole", "padded", "one mask for all"])
def test_step_by_step_is_the_whole_pass(pieces, mask):
    params, call = random_model(14, bias=True), {"source": SOURCE, "num_heads": 2, "mask": mask}
    whole, _ = transformer(params, target=TARGET, **call)
    state, logits, start = None, [], 0
    for size in pieces:
        part, state = transformer_step(params, TARGET[:, start : start + size], state, **call)
        logits.append(part)
        start += size
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, rtol=0, atol=1e-10)
    assert state.length == 4


def test_the_source_is_read_once(monkeypatch):
    """The encoder runs at the first step alone, and the memory's keys and values are the same arrays ever after."""
    params, encoded = random_model(15), []
    monkeypatch.setattr(module, "transformer_encoder", lambda *args, **config: encoded.append(1) or transformer_encoder(*args, **config))
    step = partial(transformer_step, params, num_heads=2, source=SOURCE, mask=MASK)
    _, first = step(TARGET[:, :1], None)
    _, second = step(TARGET[:, 1:2], first)
    assert encoded == [1]
    for (own, held), (_, before) in zip(second.blocks, first.blocks, strict=True):
        assert held.key is before.key and held.value is before.value
        assert held.key.shape == (3, 2, 6, 4)
        assert own.keys.shape == (3, 2, 2, 4)
    logits, _ = transformer_step(params, TARGET[:, 2:], second, num_heads=2)  # neither source nor mask are needed any more
    whole, _ = transformer(params, source=SOURCE, target=TARGET, num_heads=2, mask=MASK)
    np.testing.assert_allclose(logits, whole[:, 2:], rtol=0, atol=1e-10)


def test_a_state_can_be_continued_in_two_ways():
    params, call = random_model(16), {"num_heads": 2, "source": SOURCE}
    _, state = transformer_step(params, TARGET[:, :2], None, **call)
    for tail in (TARGET[:, 2:], TARGET[:, ::-1][:, 2:]):
        logits, _ = transformer_step(params, tail, state, num_heads=2)
        whole, _ = transformer(params, target=np.concatenate([TARGET[:, :2], tail], axis=1), **call)
        np.testing.assert_allclose(logits, whole[:, 2:], rtol=0, atol=1e-10)


def test_greedy_writing_is_one_beam_and_what_the_whole_pass_would_say():
    params, source, mask = random_model(17), SOURCE[1:2], MASK[1:2]
    step = partial(transformer_step, params, num_heads=2, source=source, mask=mask)
    written = list(generate(step, prompt_ids=np.array([0]), num_tokens=9, temperature=0.0, rng=np.random.default_rng(0)))
    (beam,) = beam_search(step, np.array([0]), num_tokens=9, num_beams=1)
    assert written == beam.ids
    logits, _ = transformer(params, source=source, target=np.array([[0, *written[:-1]]]), num_heads=2, mask=mask)
    assert written == logits[0].argmax(axis=-1).tolist()


def test_beams_carry_their_source_along():
    """Each text that a search finds has the probability that the whole pass gives it."""
    params, source, mask = random_model(18), SOURCE[1:2], MASK[1:2]
    step = partial(transformer_step, params, num_heads=2, source=source, mask=mask)
    found = beam_search(step, np.array([0]), num_tokens=5, num_beams=3, end=7)
    assert len(found) == 3
    for text in found:
        logits, _ = transformer(params, source=source, target=np.array([[0, *text.ids[:-1]]]), num_heads=2, mask=mask)
        log_probability = log_softmax(logits[0])[0][np.arange(len(text.ids)), text.ids].sum()
        np.testing.assert_allclose(text.log_probability, log_probability, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads: got 0"),
        ({"num_heads": 3}, "num_heads: got 3"),
        ({"source": np.array([[0, 13]] * 3)}, r"source: got ids from 0 to 13, wants 0 to 12"),
        ({"target": np.array([[-1, 3]] * 3)}, "target: got ids from -1 to 3"),
        ({"source": np.zeros((3, 6))}, "source: got float64"),
        ({"target": np.zeros((3, 0), int)}, "target: got shape"),
        ({"target": TARGET[:2]}, "target: got shape"),
        ({"eps": -1.0}, "eps: got -1.0"),
        ({"mask": padding_mask(LENGTHS, 7)}, "mask: got shape"),
        ({"mask": np.ones((3, 1, 6, 6), bool)}, "mask: got shape"),
        ({"mask": np.ones((3, 3, 1, 6), bool)}, "mask: got shape"),
        ({"mask": np.ones((3, 1, 1, 6))}, "mask: got float64"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"source": SOURCE, "target": TARGET, "num_heads": 2, **changes}
    with pytest.raises(ValueError, match=message):
        transformer(random_model(), **call)


def test_an_odd_width_and_a_stack_without_layers_are_refused():
    with pytest.raises(ValueError, match="d_model = 9"):
        transformer(random_model(d_model=9, num_heads=3), source=SOURCE, target=TARGET, num_heads=3)
    with pytest.raises(ValueError, match="num_layers: got 0"):
        random_model(num_layers=0)


def test_a_step_without_a_source_and_a_state_of_another_model_are_refused():
    params = random_model(19)
    _, state = transformer_step(params, TARGET, None, num_heads=2, source=SOURCE)
    for model, ids, past, call, message in (
        (params, TARGET, None, {}, "source: got None, wants what the decoder reads, at the first step"),
        (params, TARGET, None, {"source": SOURCE + 13}, "source: got ids from"),
        (params, TARGET + 13, state, {}, "ids: got ids from"),
        (random_model(num_layers=3), TARGET, state, {}, "state: got that of a model of 2 blocks, wants that of this model, of 3"),
        (params, TARGET, [], {"source": SOURCE}, "state: got list, wants TransformerState"),
    ):
        with pytest.raises(ValueError, match=message):
            transformer_step(model, ids, past, num_heads=2, **call)


@pytest.mark.parametrize("bias", [False, True])
def test_weights_survive_the_way_out_and_in(bias, tmp_path):
    params = random_model(20, bias=bias)
    params = params._replace(decoder=[*params.decoder, params.decoder[0]])  # stacks of different heights
    weights = transformer_weights(params)
    assert weights["decoder.layers.2.multihead_attn.in_proj_weight"].shape == (24, 8)
    assert ("encoder.layers.0.self_attn.in_proj_bias" in weights) is bias
    write_safetensors(tmp_path / "model.safetensors", weights)
    for source in (weights, tmp_path):
        read = load_transformer(source)
        trees.map(np.testing.assert_array_equal, read, params)
        assert all(leaf.flags.c_contiguous for _, leaf in trees.leaves(read))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("embedding.weight"), r"missing embedding\.weight"),
        (lambda w: w.pop("encoder.layers.1.norm2.bias"), r"missing encoder\.layers\.1\.norm2\.bias"),
        (lambda w: w.update({"encoder.norm.weight": np.ones(8)}), r"unexpected encoder\.norm\.weight"),
        (lambda w: w.update({"encoder.layers.0.self_attn.in_proj_weight": np.ones((23, 8))}), r"in_proj_weight of shape \(23, 8\), wants 3 equal parts"),
        (lambda w: w.update({"decoder.layers.0.linear1.weight": np.ones((5, 7))}), r"linear1\.weight of shape \(5, 7\), wants"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("decoder")], r"start with decoder\.layers\.0\."),
    ],
)
def test_weights_of_something_else_are_refused_by_name(spoil, message):
    weights = transformer_weights(random_model(21))
    spoil(weights)
    with pytest.raises(ValueError, match=message) as caught:
        load_transformer(weights)
    assert "\n" not in str(caught.value)


# --- PyTorch's own ----------------------------------------------------------------------------------------------------------


def pytorch(*, seed=0, bias=True):
    """torch.nn.Transformer without its two final norms, a table, noise on every parameter; and the parameters as ours."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    theirs = torch.nn.Transformer(16, 4, 2, 3, 12, dropout=0.0, activation="relu", batch_first=True, norm_first=False, bias=bias, dtype=torch.float64)
    theirs.encoder.norm = theirs.decoder.norm = None
    table = torch.nn.Parameter(0.3 * torch.randn(17, 16, dtype=torch.float64))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    named = {"embedding.weight": table, **dict(theirs.named_parameters())}
    return torch, theirs, named, load_transformer({name: value.detach().numpy() for name, value in named.items()})


def their_logits(torch, theirs, table, source, target, padding=None):
    """The model around torch.nn.Transformer; padding is True where the source is to be hidden."""

    def inputs(ids):
        angle = torch.arange(ids.shape[1], dtype=torch.float64)[:, None] * 10_000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
        return 4 * table[torch.tensor(ids)] + torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(ids.shape[1], 16)

    later = torch.triu(torch.ones(target.shape[1], target.shape[1], dtype=torch.bool), diagonal=1)
    hidden = None if padding is None else torch.tensor(padding)
    out = theirs(inputs(source), inputs(target), tgt_mask=later, src_key_padding_mask=hidden, memory_key_padding_mask=hidden)
    return out @ table.T


@pytest.mark.parity
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_logits_and_every_gradient_equal_pytorch(padded):
    """With label smoothing and ignored labels, as the paper trained; no final norms, which the paper does not have."""
    torch, theirs, named, params = pytorch()
    rng, lengths = np.random.default_rng(0), np.array([7, 4, 2])
    source, target, labels = rng.integers(17, size=(3, 7)), rng.integers(17, size=(3, 5)), rng.integers(17, size=(3, 5))
    labels[1, 3:] = -100
    mask = padding_mask(lengths, 7) if padded else None

    expected = their_logits(torch, theirs, named["embedding.weight"], source, target, ~mask[:, 0, 0] if padded else None)
    loss = torch.nn.functional.cross_entropy(expected.reshape(-1, 17), torch.tensor(labels).reshape(-1), label_smoothing=0.1)
    loss.backward()
    logits, backward = transformer(params, source=source, target=target, num_heads=4, mask=mask)
    own_loss, loss_backward = cross_entropy(logits, targets=labels, label_smoothing=0.1)
    grads = transformer_weights(backward(loss_backward(np.float64(1))))

    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(own_loss, loss.item(), rtol=0, atol=1e-12)
    assert named.keys() == grads.keys()
    for name, parameter in named.items():
        np.testing.assert_allclose(grads[name], parameter.grad.numpy(), rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parity
def test_decoding_equals_pytorchs_whole_passes():
    torch, theirs, named, params = pytorch(seed=1)
    source = np.random.default_rng(1).integers(17, size=(1, 6))
    step = partial(transformer_step, params, num_heads=4, source=source)
    written = [0, *generate(step, prompt_ids=np.array([0]), num_tokens=10, temperature=0.0, rng=np.random.default_rng(0))]
    expected = [0]
    with torch.no_grad():
        for _ in range(10):
            expected.append(int(their_logits(torch, theirs, named["embedding.weight"], source, np.array([expected]))[0, -1].argmax()))
    assert written == expected


@pytest.mark.parity
def test_pytorch_reads_what_we_write():
    torch, theirs, _, _ = pytorch(seed=2)
    params = random_model(22, vocabulary=17, d_model=16, num_heads=4, num_layers=3, d_hidden=12, bias=True)
    params = params._replace(encoder=params.encoder[:2])
    weights = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in transformer_weights(params).items()}
    table = weights.pop("embedding.weight")
    theirs.load_state_dict(weights)
    expected = their_logits(torch, theirs, table, SOURCE, TARGET).detach().numpy()
    np.testing.assert_allclose(transformer(params, source=SOURCE, target=TARGET, num_heads=4)[0], expected, rtol=0, atol=1e-10)
