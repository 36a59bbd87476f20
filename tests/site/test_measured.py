"""Sections on the site: a page for each, and links to it from the pages that show what it measured."""

import json
from pathlib import PurePosixPath

import pytest
from _hooks import measured, results
from site_pages import DOCS, ROOT

RECORD = {
    "chapter": "norms",
    "seed": 0,
    "environment": {},
    "values": {"cost": {"ratio": 0.5}, "softmax": {"error": 1e-9}},
    "tables": {"speed": {"columns": ["a"], "rows": [[1]], "section": "speed"}},
    "claims": [
        {"name": "Fast", "paper": "p", "expect": "e", "measured": "m", "verdict": "holds in 2 of 3", "state": "mixed", "section": "speed"},
        {"name": "Right", "paper": "p", "expect": "e", "measured": "m", "verdict": "exact", "state": "exact", "section": "errors"},
    ],
    "sections": {
        "speed": {"title": "How fast?", "kind": "timed", "seeds": 3, "figures": ["speed"], "values": {"cost.ratio": 0.5}},
        "errors": {"title": "How exact?", "kind": "exact", "seeds": 1, "figures": [], "values": {"softmax.error": 1e-9}},
    },
}
TITLES = {"norms/speed": "How fast?", "norms/errors": "How exact?"}


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "norms" / "results").mkdir(parents=True)
    (tmp_path / "norms" / "results" / "results.json").write_text(json.dumps(RECORD))
    return tmp_path


def test_each_part_of_a_page_names_the_sections_that_measured_its_numbers_once(docs):
    text = "# T\n\n## A\n\n[[cost.ratio]] and [[cost.ratio|.1f]], [[softmax.error]]\n\n## B\n\nnothing\n\n## C\n\n[[table:speed]]\n"
    filled = results.fill(text, docs, "norms", pytest.fail)
    credited = measured.credit(filled, PurePosixPath("norms/rms_norm.md"), measured.titles(docs))
    _, a, b, c = credited.split("## ")
    both = "Measured by [How fast?](measured/speed.md) · [How exact?](measured/errors.md)</p>"
    assert both in a and "Measured" not in b and "Measured by [How fast?](measured/speed.md)</p>" in c
    assert "\x02" not in credited and "\x03" not in credited
    elsewhere = measured.credit(filled, PurePosixPath("attention/cache.md"), TITLES)
    assert "(../norms/measured/speed.md)" in elsewhere


def test_numbers_of_a_chapter_without_sections_are_not_credited():
    assert measured.mark("norms", None) == ""


@pytest.mark.parametrize(("section", "claim", "other"), [("speed", "Fast", "Right"), ("errors", "Right", "Fast")])
def test_a_page_of_a_section_has_its_claims_its_exhibits_and_its_source(docs, tmp_path, section, claim, other):
    source = tmp_path / f"{section}.py"
    source.write_text('"""How?\n\nAs a paper says.\n"""\n\nx = 1\n')
    page = measured.page(RECORD, section, source)
    assert f"# {TITLES[f'norms/{section}']}" in page and "As a paper says." in page and "x = 1" in page
    assert f"python chapters/norms/{section}.py" in page
    assert ("Rests on 3 seeds" in page) == ("![](../results/speed.svg)" in page) == ("[[table:speed]]" in page) == (section == "speed")
    shown = results.fill(page, docs, "norms", pytest.fail)
    assert claim in shown and other not in shown


def test_the_look_of_a_claim_follows_its_state_and_not_its_words(docs):
    shown = results.fill("[[claims]]", docs, "norms", pytest.fail)
    mixed, exact = shown.split("<section")[1:]
    assert "claim--scale" in mixed and "holds in 2 of 3" in mixed and "claim--holds" in exact


def test_every_section_on_record_has_a_file():
    for name in measured.titles(DOCS):
        chapter, section = name.split("/")
        assert (ROOT / "chapters" / chapter / f"{section}.py").is_file(), name
