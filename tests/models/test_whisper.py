"""Whisper as itself: equal to its formula and to Hugging Face's, one step at a time as all at once; weights in and out."""

import inspect
import re
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from autograd.scipy.special import erf

from minitransformers import check_gradients, trees
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import Embedding
from minitransformers.foundation.safetensors import write_safetensors
from minitransformers.models import whisper as module
from minitransformers.models.configuration import Configuration
from minitransformers.models.whisper import (
    WHISPER_BASE,
    WHISPER_LARGE,
    WHISPER_MEDIUM,
    WHISPER_SMALL,
    WHISPER_TINY,
    WHISPER_TINY_EN,
    Whisper,
    init_whisper,
    load_whisper,
    whisper,
    whisper_step,
    whisper_waves,
    whisper_weights,
    windows_of_three,
)

SIZES = {"vocabulary": 11, "d_model": 8, "num_layers": 2, "num_heads": 4, "mels": 3, "d_hidden": 5, "places": 6, "context": 7}


def random_model(seed=0, **changes):
    rng = np.random.default_rng(seed)
    params = init_whisper(rng, **{**SIZES, **changes}, std=0.4, dtype=np.float64)
    return trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params)


MEL = np.random.default_rng(1).normal(size=(2, 9, 3))
IDS = np.random.default_rng(2).integers(11, size=(2, 5))


def textbook(params, mel, ids, num_heads, *, eps=1e-5):
    """Whisper as a formula, for one sound and one text: convolutions by loops, one head and one query at a time."""

    def norm(p, x):
        mean = anp.mean(x, axis=-1, keepdims=True)
        return p.gain * (x - mean) / anp.sqrt(anp.mean((x - mean) ** 2, axis=-1, keepdims=True) + eps) + p.bias

    def gelu(x):
        return x * (1 + erf(x / anp.sqrt(2))) / 2

    def conv(p, x, stride):
        d, rows = x.shape[1], []
        for t in range(0, len(x), stride):
            rows.append(sum(x[t + k - 1] @ p.weight[k * d : (k + 1) * d] for k in range(3) if 0 <= t + k - 1 < len(x)) + p.bias)
        return anp.stack(rows)

    def attention(p, x, source, causal):
        q, k, v = x @ p.query.weight + p.query.bias, source @ p.key.weight, source @ p.value.weight + p.value.bias
        d, heads = q.shape[1] // num_heads, []
        for h in range(num_heads):
            cut, rows = slice(h * d, (h + 1) * d), []
            for i in range(len(x)):
                seen = i + 1 if causal else len(source)
                e = anp.exp(k[:seen, cut] @ q[i, cut] / anp.sqrt(d))
                rows.append(e @ v[:seen, cut] / anp.sum(e))
            heads.append(anp.stack(rows))
        return anp.concatenate(heads, axis=1) @ p.output.weight + p.output.bias

    def mlp(p, x):
        return gelu(x @ p.up.weight + p.up.bias) @ p.down.weight + p.down.bias

    e, d = params.encoder, params.decoder
    x = gelu(conv(e.conv2, gelu(conv(e.conv1, mel, 1)), 2))
    x = x + e.positions.table[: len(x)]
    for b in e.blocks:
        unit = norm(b.attention_norm, x)
        x = x + attention(b.attention, unit, unit, causal=False)
        x = x + mlp(b.feed_forward, norm(b.feed_forward_norm, x))
    memory = norm(e.norm, x)
    y = anp.stack([d.embedding.weight[i] for i in ids]) + d.positions.table[: len(ids)]
    for b in d.blocks:
        unit = norm(b.attention_norm, y)
        y = y + attention(b.attention, unit, unit, causal=True)
        y = y + attention(b.cross_attention, norm(b.cross_attention_norm, y), memory, causal=False)
        y = y + mlp(b.feed_forward, norm(b.feed_forward_norm, y))
    return norm(d.norm, y) @ d.embedding.weight.T


def test_equals_the_formula_in_logits_and_gradients():
    params = random_model()
    logits, backward = whisper(params, MEL, ids=IDS, num_heads=4)
    np.testing.assert_allclose(logits, np.stack([textbook(params, *text, 4) for text in zip(MEL, IDS, strict=True)]), rtol=0, atol=1e-10)
    dlogits, leaves = np.random.default_rng(3).normal(size=logits.shape), [leaf for _, leaf in trees.leaves(params)]

    def total(values, mel):
        tree = trees.unflatten(params, values)
        return sum(anp.sum(dlogits[i] * textbook(tree, mel[i], IDS[i], 4)) for i in range(2))

    dparams, dmel = backward(dlogits)
    expected, expected_mel = autograd.grad(lambda both: total(*both))((leaves, MEL))
    for (path, own), theirs in zip(trees.leaves(dparams), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)
    np.testing.assert_allclose(dmel, expected_mel, rtol=0, atol=1e-10)


@pytest.mark.parametrize("frames", [1, 2, 3, 12])
@pytest.mark.parametrize("settings", [{"eps": 1e-5}, {"eps": 0.5}], ids=str)
def test_any_number_of_frames_and_eps(frames, settings):
    params, mel = random_model(4), np.random.default_rng(5).normal(size=(frames, 3))
    logits, _ = whisper(params, mel, ids=IDS[0], num_heads=4, **settings)
    np.testing.assert_allclose(logits, textbook(params, mel, IDS[0], 4, **settings), rtol=0, atol=1e-10)
    stepped, _ = whisper_step(params, IDS[0], None, num_heads=4, mel=mel, **settings)
    np.testing.assert_allclose(stepped, logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_window_has_a_frame_and_its_neighbours(stride):
    params, x = random_model(6).encoder.conv1, np.random.default_rng(7).normal(size=(5, 3))
    out, _ = windows_of_three(params, x, stride=stride)
    assert len(out) == -(-5 // stride)
    for t in range(5):
        other = x.copy()
        other[t] += 1
        moved = np.abs(windows_of_three(params, other, stride=stride)[0] - out).max(axis=1) > 1e-9
        assert list(moved) == [abs(stride * i - t) <= 1 for i in range(len(out))]
    assert check_gradients(windows_of_three, params, x, stride=stride, second_opinion=False).passed


def test_the_encoder_hears_all_and_the_decoder_reads_what_was_written():
    params = random_model(8)
    logits, _ = whisper(params, MEL, ids=IDS, num_heads=4)
    for t in range(9):
        other = MEL.copy()
        other[:, t] += 1
        assert (np.abs(whisper(params, other, ids=IDS, num_heads=4)[0] - logits).max(axis=(0, 2)) > 1e-9).all()
    for t in range(5):
        other = IDS.copy()
        other[:, t] = (other[:, t] + 1) % 11
        moved = np.abs(whisper(params, MEL, ids=other, num_heads=4)[0] - logits).max(axis=(0, 2)) > 1e-9
        assert list(moved) == [i >= t for i in range(5)]


@pytest.mark.parametrize("cuts", [[1, 1, 1, 1, 1], [2, 3], [4, 1], [5]])
def test_steps_give_what_the_whole_gives(cuts):
    params = random_model(9)
    logits, _ = whisper(params, MEL, ids=IDS, num_heads=4)
    state, at, found = None, 0, []
    for size in cuts:
        out, state = whisper_step(params, IDS[:, at : at + size], state, num_heads=4, mel=MEL if state is None else None)
        found.append(out)
        at += size
    assert state.length == 5
    np.testing.assert_allclose(np.concatenate(found, axis=1), logits, rtol=0, atol=1e-10)


def test_a_step_runs_the_encoder_once():
    params = random_model(10)
    _, state = whisper_step(params, IDS[:, :2], None, num_heads=4, mel=MEL)
    keys = [held.key for _, held in state.blocks]
    _, after = whisper_step(params, IDS[:, 2:], state, num_heads=4, mel=np.full_like(MEL, np.nan))  # not looked at
    assert all(held.key is key for (_, held), key in zip(after.blocks, keys, strict=True))


@pytest.mark.parametrize("forgotten", ["as the table that is read", "as the head", "all blocks' reading of the memory but the last's"])
def test_a_backward_that_forgets_one_of_several_uses_is_refused(forgotten):
    params = random_model(11, vocabulary=4, d_model=4, num_heads=1, mels=1, d_hidden=1, places=1, context=2)
    params = params._replace(encoder=params.encoder._replace(blocks=params.encoder.blocks[:1]))  # few numbers: each is moved by itself

    def forgetful(params, mel, *, ids):
        logits, backward = whisper(params, mel, ids=ids, num_heads=1)

        def wrong(dlogits):
            (dencoder, ddecoder), dmel = backward(dlogits)
            h = np.linalg.lstsq(params.decoder.embedding.weight, logits.reshape(-1, 4).T, rcond=None)[0].T  # what stood before the head
            as_head = dlogits.reshape(-1, 4).T @ h
            if forgotten == "as the head":
                ddecoder = ddecoder._replace(embedding=Embedding(ddecoder.embedding.weight - as_head))
            elif forgotten == "as the table that is read":
                ddecoder = ddecoder._replace(embedding=Embedding(as_head))
            else:                                            # the first block deaf: it reads nothing, and sends nothing
                deaf = params.decoder.blocks[0].cross_attention
                deaf = deaf._replace(key=trees.map(np.zeros_like, deaf.key), value=deaf.value._replace(weight=np.zeros_like(deaf.value.weight)))
                blocks = [params.decoder.blocks[0]._replace(cross_attention=deaf), params.decoder.blocks[1]]
                dmel = whisper(Whisper(params.encoder, params.decoder._replace(blocks=blocks)), mel, ids=ids, num_heads=1)[1](dlogits)[1]
            return Whisper(dencoder, ddecoder), dmel

        return logits, wrong

    report = check_gradients(forgetful, params, MEL[:1, :2, :1], ids=np.array([[1, 3]]), second_opinion=False)
    assert not report.passed
    assert report.worst.path == ("mel" if "blocks" in forgotten else "params.decoder.embedding.weight")


def test_it_starts_undecided_and_with_waves():
    params = init_whisper(np.random.default_rng(12), vocabulary=11, d_model=64, num_layers=2, num_heads=4, mels=9, places=30, context=40)
    assert params.decoder.blocks[0].feed_forward.up.weight.shape == (64, 256)
    for weight in (params.encoder.conv1.weight, params.encoder.conv2.weight, params.decoder.blocks[1].cross_attention.key.weight,
                   params.decoder.positions.table, params.encoder.blocks[0].attention.query.weight, params.encoder.blocks[1].feed_forward.down.weight):  # fmt: skip
        assert abs(weight.std() / 0.02 - 1) < 0.1
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}
    assert all(part.key.bias is None and part.value.bias is not None for b in params.decoder.blocks for part in (b.attention, b.cross_attention))
    np.testing.assert_array_equal(params.encoder.positions.table, whisper_waves(30, 64).astype(np.float32))
    ids, targets = np.random.default_rng(13).integers(11, size=(2, 4, 40))
    logits, _ = whisper(params, np.random.default_rng(14).normal(size=(4, 60, 9)).astype(np.float32), ids=ids, num_heads=4)
    assert abs(float(cross_entropy(logits, targets=targets)[0]) - np.log(11)) < 0.05


def test_waves_are_of_wavelengths_from_two_pi_on():
    waves = whisper_waves(9, 6)
    for i, length in enumerate((1, 100, 10_000)):
        np.testing.assert_allclose(waves[:, i], np.sin(np.arange(9) / length), rtol=0, atol=1e-12)
        np.testing.assert_allclose(waves[:, 3 + i], np.cos(np.arange(9) / length), rtol=0, atol=1e-12)
    for d_model in (2, 5):
        with pytest.raises(ValueError, match=f"d_model: got {d_model}"):
            whisper_waves(3, d_model)


def count(vocabulary, d_model, num_layers, num_heads, mels=80, d_hidden=None, places=1500, context=448):
    d, f = d_model, 4 * d_model if d_hidden is None else d_hidden
    attention, work = 4 * d * d + 3 * d, 2 * d * f + f + d
    encoder = 3 * mels * d + d + 3 * d * d + d + places * d + num_layers * (attention + work + 4 * d) + 2 * d
    decoder = vocabulary * d + context * d + num_layers * (2 * attention + work + 6 * d) + 2 * d
    return encoder + decoder


PUBLISHED = {
    "WHISPER_TINY_EN": (WHISPER_TINY_EN, 37_760_256),
    "WHISPER_TINY": (WHISPER_TINY, 37_760_640),
    "WHISPER_BASE": (WHISPER_BASE, 72_593_920),
    "WHISPER_SMALL": (WHISPER_SMALL, 241_734_912),
    "WHISPER_MEDIUM": (WHISPER_MEDIUM, 763_857_920),
    "WHISPER_LARGE": (WHISPER_LARGE, 1_543_304_960),
}


def test_the_formula_of_the_count_is_that_of_the_parameters():
    assert trees.count_parameters(random_model()) == count(**SIZES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_configurations_have_the_published_number_of_parameters(name):
    configuration, published = PUBLISHED[name]
    assert count(**configuration.sizes) == published


def test_every_named_configuration_is_held_to_its_count_and_explained():
    named = {name: found for name, found in vars(module).items() if isinstance(found, Configuration)}
    assert named == {name: configuration for name, (configuration, _) in PUBLISHED.items()}
    rows = [line.split() for line in inspect.getdoc(inspect.unwrap(whisper)).splitlines() if re.match(r"\s+WHISPER_", line)]
    assert [row[0] for row in rows] == list(named)
    for name, layers, d_model, heads, vocabulary, parameters in rows:
        sizes, settings = named[name]
        number = int(layers.split("+")[0])
        assert layers == f"{number}+{number}" and settings == {"num_heads": int(heads)}
        assert sizes == {"vocabulary": int(vocabulary), "d_model": int(d_model), "num_layers": number, "num_heads": int(heads)}
        assert int(parameters.replace(",", "")) == PUBLISHED[name][1]


def test_a_named_configuration_runs_at_a_smaller_size_and_tinys_heads_are_the_usual_ones():
    for configuration, _ in PUBLISHED.values():
        small = {**configuration.sizes, "vocabulary": 7, "d_model": 2 * configuration.settings["num_heads"], "num_layers": 1, "places": 5}
        params = init_whisper(np.random.default_rng(0), **small)
        mel = np.ones((1, 10, 80), np.float32)
        logits, _ = whisper(params, mel, ids=np.array([[1, 6, 2]]), **configuration.settings)
        assert logits.shape == (1, 3, 7)
        if configuration is WHISPER_TINY:
            np.testing.assert_array_equal(logits, whisper(params, mel, ids=np.array([[1, 6, 2]]))[0])
            np.testing.assert_array_equal(whisper_step(params, np.array([[1]]), None, mel=mel)[0], whisper(params, mel, ids=np.array([[1]]))[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads: got 0"),
        ({"num_heads": 3}, "num_heads: got 3"),
        ({"ids": IDS + 10}, "ids: got ids from"),
        ({"ids": IDS[:1]}, r"mel|ids"),
        ({"ids": np.zeros((2, 8), int)}, "positions: got 0 to 7, wants 0 to 6"),
        ({"ids": np.zeros((2, 0), int)}, "ids"),
        ({"mel": MEL[..., :2]}, "mel: got 2 features a frame, wants 3"),
        ({"mel": np.ones((2, 13, 3))}, "mel: got 13 frames, wants 1 to 12"),
        ({"mel": MEL[:, :0]}, "mel"),
        ({"mel": MEL.astype(np.float32)}, "float32"),
        ({"eps": -1.0}, "eps: got -1.0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"mel": MEL, "ids": IDS, "num_heads": 4, **changes}
    with pytest.raises(ValueError, match=message):
        whisper(random_model(), call.pop("mel"), **call)


def test_steps_that_do_not_fit_are_refused_by_name():
    params = random_model()
    step = partial(whisper_step, params, num_heads=4)
    _, state = step(IDS, None, mel=MEL)
    for arguments, message in (
        ((IDS, None), "mel: got None, wants what the decoder listens to"),
        ((IDS, state), "positions: got 5 to 9, wants 0 to 6"),
        ((IDS + 10, state), "ids: got ids from"),
        ((IDS, 3), "state: got int"),
        ((IDS, state._replace(blocks=state.blocks[:1])), "state: got WhisperState, wants WhisperState of 2 blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            step(*arguments)
    with pytest.raises(ValueError, match="mel: got 2 features"):
        step(IDS, None, mel=MEL[..., :2])


def test_weights_survive_the_way_out_and_in(tmp_path):
    params = random_model(21)
    weights = whisper_weights(params)
    assert weights["model.encoder.conv1.weight"].shape == (8, 3, 3) and weights["model.encoder.conv2.weight"].shape == (8, 8, 3)
    write_safetensors(tmp_path / "model.safetensors", weights)
    for source in (weights, tmp_path, weights | {"proj_out.weight": weights["model.decoder.embed_tokens.weight"].copy()}):
        read = load_whisper(source)
        trees.map(np.testing.assert_array_equal, read, params)
        assert all(leaf.flags.c_contiguous for _, leaf in trees.leaves(read))
    uneven = Whisper(params.encoder._replace(blocks=params.encoder.blocks[:1]), params.decoder)
    trees.map(np.testing.assert_array_equal, load_whisper(whisper_weights(uneven)), uneven)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("model.decoder.embed_tokens.weight"), r"missing model\.decoder\.embed_tokens\.weight"),
        (lambda w: w.pop("model.encoder.conv1.weight"), r"got no model\.encoder\.conv1\.weight"),
        (lambda w: w.pop("model.decoder.layers.0.encoder_attn.k_proj.weight"), r"missing model\.decoder\.layers\.0\.encoder_attn\.k_proj\.weight"),
        (lambda w: w.update({"model.encoder.conv2.weight": np.ones((8, 8, 5))}), r"conv2\.weight of width 5, wants a convolution of width 3"),
        (lambda w: w.update({"model.encoder.layers.0.self_attn.k_proj.bias": np.ones(8)}), r"unexpected .*k_proj\.bias"),
        (lambda w: w.update({"proj_out.weight": np.ones((11, 8))}), r"proj_out\.weight of its own, wants model\.decoder\.embed_tokens"),
        (lambda w: w.update({"model.decoder.layers.1.fc1.weight": np.ones((5, 7))}), r"fc1\.weight of shape \(5, 7\), wants"),
        (lambda w: w.clear(), r"got no model\.encoder\.conv1\.weight"),
    ],
)
def test_weights_of_something_else_are_refused_by_name(spoil, message):
    weights = whisper_weights(random_model(23))
    spoil(weights)
    with pytest.raises(ValueError, match=message) as caught:
        load_whisper(weights)
    assert "\n" not in str(caught.value)


# --- Hugging Face's own -----------------------------------------------------------------------------------------------------


@pytest.fixture
def references():
    return pytest.importorskip("torch"), pytest.importorskip("transformers")


def hugging_face(torch, transformers, *, seed=0):
    """A small random model in float64 with noise on every parameter, and its parameters as ours."""
    torch.manual_seed(seed)
    config = transformers.WhisperConfig(
        vocab_size=17, num_mel_bins=5, d_model=12, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=10, decoder_ffn_dim=10, max_source_positions=6, max_target_positions=9, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.WhisperForConditionalGeneration(config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.requires_grad_(True)
            parameter += 0.2 * torch.randn_like(parameter)
    return theirs, load_whisper({key: value.detach().numpy() for key, value in theirs.state_dict().items()})


@pytest.mark.parity
def test_logits_and_every_gradient_equal_hugging_face(references):
    torch, transformers = references
    theirs, params = hugging_face(torch, transformers)
    rng = np.random.default_rng(0)
    mel, ids, labels = rng.normal(size=(3, 12, 5)), rng.integers(1, 17, size=(3, 7)), rng.integers(17, size=(3, 7))
    labels[0, 4:] = -100
    features = torch.tensor(mel.transpose(0, 2, 1).copy(), requires_grad=True)
    expected = theirs(input_features=features, decoder_input_ids=torch.tensor(ids), labels=torch.tensor(labels))
    expected.loss.backward()
    logits, backward = whisper(params, mel, ids=ids, num_heads=4)
    loss, loss_backward = cross_entropy(logits, targets=labels)
    dparams, dmel = backward(loss_backward(np.float64(1)))
    np.testing.assert_allclose(logits, expected.logits.detach().numpy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(loss, expected.loss.item(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dmel, features.grad.numpy().transpose(0, 2, 1), rtol=0, atol=1e-10)
    grads, named = whisper_weights(dparams), dict(theirs.named_parameters())
    assert named.keys() == grads.keys()
    for key, parameter in named.items():
        np.testing.assert_allclose(grads[key], parameter.grad.numpy(), rtol=0, atol=1e-10, err_msg=key)


@pytest.mark.parity
def test_transformers_reads_what_we_write(references, tmp_path):
    torch, transformers = references
    theirs, _ = hugging_face(torch, transformers)
    params = random_model(24, vocabulary=17, mels=5, d_model=12, d_hidden=10, context=9)
    theirs.config.save_pretrained(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", whisper_weights(params), metadata={"format": "pt"})
    read, info = transformers.WhisperForConditionalGeneration.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float64, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    mel, ids = np.random.default_rng(0).normal(size=(1, 12, 5)), np.array([[1, 5, 3]])
    expected = read(input_features=torch.tensor(mel.transpose(0, 2, 1).copy()), decoder_input_ids=torch.tensor(ids)).logits
    np.testing.assert_allclose(whisper(params, mel, ids=ids, num_heads=4)[0], expected.detach().numpy(), rtol=0, atol=1e-10)


@pytest.mark.parity
@pytest.mark.parametrize("name", PUBLISHED)
def test_hugging_faces_model_of_that_configuration_has_the_same_shapes(references, name):
    """Built without storage."""
    torch, transformers = references
    sizes = PUBLISHED[name][0].sizes
    d, layers, heads = sizes["d_model"], sizes["num_layers"], sizes["num_heads"]
    config = transformers.WhisperConfig(
        vocab_size=sizes["vocabulary"], d_model=d, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=4 * d, decoder_ffn_dim=4 * d,
    )  # fmt: skip
    assert (config.num_mel_bins, config.max_source_positions, config.max_target_positions, config.activation_function) == (80, 1500, 448, "gelu")
    with torch.device("meta"):
        assert transformers.WhisperForConditionalGeneration(config).num_parameters() == count(**sizes)
