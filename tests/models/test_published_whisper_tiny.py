"""Whisper tiny.en with its real weights on a made-up sound: logits beside transformers', a text in steps as a whole, and texts as transformers writes them."""

from functools import partial

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.models.decoding import generate
from minitransformers.models.speech import SpeechModel, load_speech_model, speech_ids, transcribe
from minitransformers.models.whisper import WHISPER_TINY_EN, Whisper, whisper, whisper_step, whisper_waves, whisper_weights

START, NO_TIMES, END = 50257, 50362, 50256


@pytest.fixture(scope="module")
def model() -> SpeechModel:
    try:
        return load_speech_model()
    except ValueError as absent:
        pytest.skip(str(absent))


@pytest.fixture(scope="module")
def loaded(model) -> tuple[Whisper, int]:
    return model.params, model.num_heads


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


@pytest.fixture(scope="module")
def theirs(loaded):
    """The same weights in transformers' model."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    params, num_heads = loaded
    sizes = {"d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536}
    config = transformers.WhisperConfig(
        vocab_size=51_864, encoder_attention_heads=num_heads, decoder_attention_heads=num_heads, **sizes, attn_implementation="eager"
    )
    with torch.device("meta"):                               # their first weights are not wanted
        found = transformers.WhisperForConditionalGeneration(config).eval()
    weights = {name: torch.from_numpy(array) for name, array in whisper_weights(params).items()}
    missing, unexpected = found.load_state_dict(weights, strict=False, assign=True)
    assert missing == ["proj_out.weight"] and not unexpected
    found.tie_weights()
    return found


@pytest.mark.weights
@pytest.mark.parity
def test_logits_are_those_of_transformers(loaded, theirs):
    torch = pytest.importorskip("torch")
    params, num_heads = loaded
    mel, ids = sound(3000)[None], np.array([[START, NO_TIMES, 464, 3797, 318]])  # theirs wants 30 seconds
    with torch.no_grad():
        expected = theirs(input_features=torch.from_numpy(mel.transpose(0, 2, 1).copy()), decoder_input_ids=torch.tensor(ids)).logits.numpy()
    own, _ = whisper(params, mel, ids=ids, num_heads=num_heads)
    assert 10 < np.abs(expected).max() < 100
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-3)


TIME = np.arange(3 * 16_000) / 16_000


def hum():
    """A voice without a mouth: overtones of a pitch that wanders around 120 a second."""
    pitch = np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * TIME)) / 16_000
    return 0.1 * sum(np.cos(2 * np.pi * k * pitch) / k for k in range(1, 30)) + 0.001 * np.random.default_rng(0).normal(size=TIME.size)


def vowels():
    """The same with a mouth: twelve syllables, each with two resonances that raise the overtones near them."""
    syllables = []
    for i, (low, high) in enumerate([(700, 1100), (300, 2300), (500, 900), (320, 800)] * 3):
        t = TIME[i * 4000 : (i + 1) * 4000]
        loud = [sum(1 / (1 + ((120 * k - at) / 60) ** 2) for at in (low, high, 2800)) for k in range(1, 40)]
        syllables.append(np.hanning(4000) * sum(a * np.cos(2 * np.pi * 120 * k * t) / k**0.5 for k, a in enumerate(loud, 1)))
    return 0.05 * np.concatenate(syllables)


@pytest.mark.weights
@pytest.mark.parity
@pytest.mark.parametrize("made_up", [hum, vowels], ids=lambda function: function.__name__)
def test_what_is_written_is_what_transformers_writes(model, theirs, made_up):
    """From the samples on: their frames, their model, their greedy search, with the same tokens suppressed."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    samples = made_up().astype(np.float32)
    features = transformers.WhisperFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="pt").input_features
    theirs.generation_config = transformers.GenerationConfig(
        bos_token_id=END, eos_token_id=END, pad_token_id=END, decoder_start_token_id=START, no_timestamps_token_id=NO_TIMES, is_multilingual=False,
        return_timestamps=False, suppress_tokens=model.never.tolist(), begin_suppress_tokens=model.never_first.tolist(), max_new_tokens=224, do_sample=False,
    )  # fmt: skip
    with torch.no_grad():
        expected = theirs.generate(features, decoder_input_ids=torch.tensor([[START, NO_TIMES]]))[0].tolist()
    found = speech_ids(samples, model=model)
    assert found == [i for i in expected if i not in (START, NO_TIMES, END)]
    assert found
    (heard,) = transcribe(samples, model=model)
    assert (heard.start, heard.end) == (0, 3) and heard.text


@pytest.mark.weights
def test_what_is_never_written_are_the_published_ids_and_those_without_a_text(model):
    never = set(model.never.tolist())
    assert {START, 50_363, 51_863, 1, 50_361} <= never and not never & {0, 3, 220, END, NO_TIMES}
    assert len(never) == 90 + 1_501 and model.never_first.tolist() == [220, END]
    assert model.longest == 480_000 and model.vocabulary.added.ids["<|endoftext|>"] == END
