"""Whisper tiny.en with its real weights on a made-up sound: logits beside transformers', and a text in steps as a whole."""

from functools import partial

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.models.decoding import generate
from minitransformers.models.whisper import WHISPER_TINY_EN, Whisper, whisper, whisper_step, whisper_waves, whisper_weights
from minitransformers.models.whisper_ctranslate2 import load_whisper_tiny

START, NO_TIMES = 50257, 50362


@pytest.fixture(scope="module")
def loaded() -> tuple[Whisper, int]:
    try:
        return load_whisper_tiny()
    except ValueError as absent:
        pytest.skip(str(absent))


def sound(frames):
    """Two tones whose pitch wanders, over noise, in the size of the features that the model was trained on."""
    rng, t, mel = np.random.default_rng(0), np.arange(frames)[:, None], np.arange(80)[None]
    tones = sum(np.exp(-(((mel - centre - 8 * np.sin(t / 40 + centre)) / 2) ** 2)) for centre in (20, 50))
    return (tones - 0.6 + 0.1 * rng.normal(size=(frames, 80))).astype(np.float32)


@pytest.mark.weights
def test_it_is_tiny_and_its_positions_are_waves(loaded):
    params, num_heads = loaded
    assert num_heads == WHISPER_TINY_EN.settings["num_heads"] and trees.count_parameters(params) == 37_760_256
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(params.encoder.positions.table, whisper_waves(1500, 384), rtol=0, atol=5e-4)  # float16 in the file


@pytest.mark.weights
def test_a_text_in_steps_is_the_text_as_a_whole(loaded):
    """A short sound: the encoder takes what half its frames are."""
    params, num_heads = loaded
    mel, ids = sound(200)[None], np.array([[START, NO_TIMES, 464, 3797, 318]])
    logits, _ = whisper(params, mel, ids=ids, num_heads=num_heads)
    assert logits.dtype == np.float32 and logits.shape == (1, 5, 51_864)
    first, state = whisper_step(params, ids[:, :2], None, num_heads=num_heads, mel=mel)
    rest = []
    for i in range(2, 5):
        out, state = whisper_step(params, ids[:, i : i + 1], state, num_heads=num_heads)
        rest.append(out)
    np.testing.assert_allclose(np.concatenate([first, *rest], axis=1), logits, rtol=0, atol=1e-4)


@pytest.mark.weights
def test_the_best_next_token_in_steps_is_that_of_the_whole(loaded):
    params, num_heads = loaded
    mel, prompt = sound(200)[None], np.array([START, NO_TIMES])
    step = partial(whisper_step, params, num_heads=num_heads, mel=mel)
    written = generate(step, prompt_ids=prompt, num_tokens=5, rng=np.random.default_rng(0), temperature=0)
    ids = [*prompt]
    for token in written:
        assert token == whisper(params, mel, ids=np.array([ids]), num_heads=num_heads)[0][0, -1].argmax()
        ids.append(token)


@pytest.mark.weights
@pytest.mark.parity
def test_logits_are_those_of_transformers(loaded):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    params, num_heads = loaded
    sizes = {"d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536}
    config = transformers.WhisperConfig(
        vocab_size=51_864, encoder_attention_heads=num_heads, decoder_attention_heads=num_heads, **sizes, attn_implementation="eager"
    )
    with torch.device("meta"):                               # their first weights are not wanted
        theirs = transformers.WhisperForConditionalGeneration(config).eval()
    weights = {name: torch.from_numpy(array) for name, array in whisper_weights(params).items()}
    missing, unexpected = theirs.load_state_dict(weights, strict=False, assign=True)
    assert missing == ["proj_out.weight"] and not unexpected
    theirs.tie_weights()
    mel, ids = sound(3000)[None], np.array([[START, NO_TIMES, 464, 3797, 318]])  # theirs wants 30 seconds
    with torch.no_grad():
        expected = theirs(input_features=torch.from_numpy(mel.transpose(0, 2, 1).copy()), decoder_input_ids=torch.tensor(ids)).logits.numpy()
    own, _ = whisper(params, mel, ids=ids, num_heads=num_heads)
    assert 10 < np.abs(expected).max() < 100
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-3)
