"""minitransformers notebook: a section's cells, with what is said and on record between them."""

import ast
import contextlib
import io
import json

import pytest

from minitransformers.cli import repository
from minitransformers.cli.notebook import made


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def every_section():
    return [path for chapter in repository.scripts().values() for path in repository.sections(chapter).values()]


def source_of(cell):
    return "".join(cell["source"])


def test_it_is_a_notebook_with_the_pages_words_and_the_record(folder, run):
    assert run("notebook", "norms/plane").status == 0
    found = json.loads((folder / "norms_plane.ipynb").read_text())
    assert found["nbformat"] == 4 and len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
    assert source_of(found["cells"][0]).startswith("# What does RMS norm do")
    words = "\n".join(source_of(cell) for cell in found["cells"] if cell["cell_type"] == "markdown")
    assert "From the page norms/rms_norm.md" in words and "On record: *exact*" in words and "[[" not in words
    assert source_of(found["cells"][-1]) == "section.main()"


def test_its_cells_run_one_after_another(folder, run):
    run("notebook", "norms/plane")
    space, said = {"__name__": "__main__"}, io.StringIO()
    for cell in json.loads((folder / "norms_plane.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            with contextlib.redirect_stdout(said):
                exec(compile(source_of(cell), "cell", "exec"), space)  # no SystemExit at the end
    assert "[exact]" in said.getvalue() and sorted(path.name for path in folder.iterdir()) == ["norms_plane.ipynb"]


def test_every_section_can_be_one():
    docs = repository.root() / "docs"
    for source in every_section():
        before, marked, _ = source.read_text(encoding="utf-8").partition("\n# %%")
        assert marked and len(ast.parse(before).body) == 1, f"{source}: something stands between its text and its first cell"
        cells = made(source, docs)["cells"]
        for cell in cells:
            if cell["cell_type"] == "code":
                compile(source_of(cell), str(source), "exec")
        assert source_of(cells[-1]) == "section.main()", source


def test_bad_calls_are_one_line(folder, run, refuses):
    assert "CHAPTER/SECTION" in refuses("notebook", "norms")
    assert "did you mean" in refuses("notebook", "norms/plain")
    assert "chapter" in refuses("notebook", "nroms/plane")
    run("notebook", "norms/plane")
    assert "is there already" in refuses("notebook", "norms/plane")
    assert run("notebook", "norms/plane", "--out", "other.ipynb").status == 0
