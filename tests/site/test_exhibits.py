"""Which modules stand beside a page: the catalogue says so, not the path."""

from dataclasses import replace
from pathlib import PurePath

import pytest
from _hooks import exhibits
from site_pages import DOCS

from minitransformers import catalogue

ENTRY = next(iter(catalogue.concepts().values()))


class Named:
    """A function that says where it lives."""

    def __init__(self, module: str) -> None:
        self.__module__ = module


def entry(name: str, module: str, chapter: str = "norms", **parts) -> catalogue.Entry:
    function = Named(f"minitransformers.{chapter}.{module}")
    return replace(ENTRY, **{"name": name, "chapter": chapter, "function": function, "form_of": None, "is_procedure": False, **parts})


@pytest.fixture
def beside(tmp_path):
    """Exhibit of a page of a package in which every module of the entries lies, and further files."""

    def make(page, *entries, files=()):
        for path in [*(one.module.split(".", 1)[1].replace(".", "/") + ".py" for one in entries), *files]:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        found = exhibits.beside(PurePath(page), {one.name: one for one in entries}, tmp_path)
        if found is None:
            return None
        return [(source.file.relative_to(tmp_path).as_posix(), *source.names) for source in (found.main, *found.forms)]

    return make


def test_a_page_explains_the_entry_of_its_name_in_its_chapter(beside):
    assert beside("norms/a.md", entry("a", "a"), entry("b", "b")) == [("norms/a.py", "a")]
    assert beside("basics/a.md", entry("a", "a")) is None


def test_the_module_may_lie_anywhere_in_the_chapter(beside):
    assert beside("models/lm.md", entry("lm", "workbench.lm", "models")) == [("models/workbench/lm.py", "lm")]


def test_procedures_in_one_file_share_the_page_of_its_name(beside):
    masks = [entry(name, "masks", is_procedure=True) for name in ("causal", "padding")]
    assert beside("norms/masks.md", *masks) == [("norms/masks.py", "causal", "padding")]


def test_other_forms_share_the_plain_ones_page_and_come_after_it(beside):
    forms = [entry("a_fast", "a_fast", form_of="a"), entry("a", "a"), entry("a_exact", "a", form_of="a")]
    assert beside("norms/a.md", *forms) == [("norms/a.py", "a", "a_exact"), ("norms/a_fast.py", "a_fast")]
    assert beside("norms/a_fast.md", *forms) == [("norms/a_fast.py", "a_fast")], "a form with a page of its own"


def test_a_form_in_a_later_chapter_goes_to_the_plain_ones_page(beside):
    forms = [entry("a", "a"), entry("a_blocks", "a_blocks", "vision", form_of="a")]
    assert beside("norms/a.md", *forms) == [("norms/a.py", "a"), ("vision/a_blocks.py", "a_blocks")]


def test_a_module_without_an_entry_has_the_page_of_its_path(beside):
    assert beside("norms/tools.md", files=["norms/tools.py"]) == [("norms/tools.py",)]


def test_the_subject_of_a_page_is_the_entry_of_the_files_name_or_all_of_the_file(tmp_path):
    source = exhibits.Source(tmp_path / "a.py", (entry("a", "a"), entry("a_exact", "a", form_of="a")))
    assert [one.name for one in exhibits.Exhibit(source).subjects] == ["a"]
    source = exhibits.Source(tmp_path / "masks.py", (entry("causal", "masks"), entry("padding", "masks")))
    assert [one.name for one in exhibits.Exhibit(source).subjects] == ["causal", "padding"]


def test_a_table_links_to_the_page_that_exists(tmp_path):
    known = {one.name: one for one in (entry("a", "a"), entry("a_fast", "a_fast", form_of="a"))}
    assert exhibits.page_of(known["a_fast"], known, tmp_path) is None
    for page in ("norms/a.md", "norms/a_fast.md"):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).touch()
        assert exhibits.page_of(known["a_fast"], known, tmp_path) == page


def test_every_entry_has_a_page():
    known = catalogue.entries()
    missing = exhibits.missing_pages(known.values(), known, DOCS)
    assert not missing, f"pages that nobody has written: {', '.join(missing)}"
