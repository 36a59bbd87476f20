"""What the build puts on a page by itself: shapes, the exercise's command, words of the glossary, verdicts, and the book."""

import re

import numpy as np
import pytest
from _hooks import book, practice, results, shapes, values, words
from site_pages import DOCS

from minitransformers import catalogue

PAGE = "# Norm\n\nThe problem.\n\n**The idea.** Divide.\n\n| symbol | shape | meaning |\n| --- | --- | --- |\n\n## Exercises\n\n**Exercise 1.** Why?\n\n## Sources\n"


@pytest.fixture
def rms_norm():
    return [catalogue.find("rms_norm")]


def test_a_page_without_a_picture_gets_one_of_shapes_after_its_first_paragraphs(rms_norm):
    page = shapes.put_in(PAGE, rms_norm)
    before, after = page.split('<figure class="shapes">')
    assert before.rstrip().endswith("Divide.") and "| symbol" in after
    assert re.findall(r"<code>([^<]*)</code><span>([^<]*)</span>", page) == [("params.gain", "d_model"), ("x", "…, d_model"), ("out", "…, d_model")]


def test_a_page_with_a_picture_or_without_an_entry_is_left_alone(rms_norm):
    drawn = PAGE.replace("The problem.", "![](results/a.svg)")
    assert shapes.put_in(drawn, rms_norm) == drawn
    assert shapes.put_in(PAGE, []) == PAGE


def test_what_has_no_arrays_shows_the_values_of_its_call():
    page = shapes.put_in(PAGE, [catalogue.find("undo_edits"), catalogue.find("rewrite")])
    assert "<code>rewrite</code>" in page and "<span>chairman: chair</span>" in page  # the first of the file
    assert "<span>text: The Chair met a firefighter. &quot;A policeman&quot;, he wrote.</span>" in page
    assert shapes.put_in(PAGE, [catalogue.find("rewrite"), catalogue.find("rms_norm")]).count("<rect") == 3 + 2  # what has arrays goes first


def test_values_are_told_in_a_few_short_lines():
    assert values.lines_of(["a"] * 99) == [("a " * 99)[:63].rstrip() + "…"]
    assert values.lines_of({i: [1.0, 2.5] for i in range(9)}) == ["0: 1 2.5", "1: 1 2.5", "2: 1 2.5", "3: 1 2.5", "…"]
    assert values.lines_of(b"one\n\n" + b"0123456789abcdef" * 4) == ["one", "012345…"]
    assert values.lines_of((len, np.arange(3), None, frozenset("ba"), ())) == ["a function", "0 1 2", "None", "a b", "none"]


def test_settings_are_told_from_what_is_differentiable():
    picture = shapes.picture(catalogue.find("lora_linear"))
    fixed = re.findall(r'shapes__array--fixed"><svg.*?</svg><code>([^<]*)</code>', picture)
    assert fixed == ["base.weight", "base.bias"] and "A grey one is a setting" in picture


@pytest.mark.parametrize("name", catalogue.entries())
def test_a_picture_can_be_tried_of_every_entry(name):
    picture = shapes.picture(catalogue.find(name))
    assert picture == "" or picture.count("<div") == picture.count("</div>")


def test_the_exercises_command_stands_at_the_end_of_the_exercises(rms_norm):
    page = practice.put_in(PAGE, rms_norm)
    assert page.index("Why?") < page.index("minitransformers exercise rms_norm") < page.index("## Sources")
    assert practice.put_in(PAGE, [catalogue.find("magnitude_mask")]) == PAGE
    assert practice.put_in("# No exercises\n", rms_norm) == "# No exercises\n"


def test_the_glossary_explains_the_first_use_of_a_word_in_running_text():
    known = words.explained(DOCS / "glossary.md")
    assert "Slot" in known and "Error" not in known and not any("$" in text or "`" in text for text in known.values())
    html = '<h2>A slot</h2><p>A <code>slot</code> is a slot; a slot \\(slot\\).</p><div class="arithmatex">\\[slot\\]</div>'
    said = words.explain(html, {"Slot": 'a "place"'})
    assert said.count("<abbr") == 1 and '<code>slot</code> is a <abbr title="a &quot;place&quot;" tabindex="0">slot</abbr>; a slot' in said
    assert words.explain("<p>slots and a slot-like thing</p>", {"Slot": "x"}).count("<abbr") == 0


def test_verdicts_are_counted_and_listed_by_question():
    found = {
        "chapter": "norms", "sections": {"text": {"title": "Who learns?"}},
        "claims": [
            {"name": "One", "section": "text", "state": "holds", "verdict": "holds in 3 of 3", "again": {"state": "mixed", "verdict": "holds in 2 of 3"}},
            {"name": "Two", "section": "text", "state": "does not hold", "verdict": "does not hold: holds in 0 of 3"},
        ],
    }  # fmt: skip
    table = results.verdicts(found)
    assert '"2 claims: 1 hold, 1 do not hold"' in table
    assert table.count("[Who learns?](measured/text.md)") == 1 and "verdict--holds" in table and "verdict--scale" in table
    assert '| One | <span class="verdict verdict--holds">holds in 3 of 3</span> | <span class="verdict verdict--scale">holds in 2 of 3</span> |' in table


def test_the_book_has_each_address_once_and_its_links_stay_inside():
    pages = [
        book.Chapter("a/one.html", "One", '<h1 id="top">One</h1><div id="eq-1"></div><a href="two.html#eq-1">see</a><a href="#eq-1">here</a>'),
        book.Chapter("a/two.html", "Two & more", '<div id="eq-1"></div><a href="../index.html">home</a><a href="https://arxiv.org">paper</a><img src="x.svg">'),
    ]
    text = book.bound(pages, "Site")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and "a-one--eq-1" in ids and "a-two" in ids
    assert 'href="#a-two--eq-1"' in text and 'href="#a-one--eq-1"' in text
    assert 'href="index.html"' in text and 'href="https://arxiv.org"' in text and 'src="a/x.svg"' in text
    assert "Two &amp; more" in text


@pytest.mark.parametrize(("file", "pages"), [(book.FILE, 200), ("book-norms.html", 9)])
def test_the_site_has_the_book_with_all_pages_and_each_chapter_by_itself(site, file, pages):
    text = (site / file).read_text(encoding="utf-8")
    ids = re.findall(r'<[^>]*\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    inside = {target for target in re.findall(r'href="#([^"]+)"', text)}
    missing = {target for target in inside - set(ids) if not re.search(r"--(L\d+|.*-L\d+|source)$", target)}  # lines stand on the site alone
    assert not missing, sorted(missing)[:10]
    assert text.count('class="book__page"') >= pages and "norms-rms_norm--eq-1" in ids
    outside = {target for target in re.findall(r'href="([^"#:]+\.html)', text)}
    assert all((site / target).is_file() for target in outside)
    assert ("book-norms.html" in outside) == (file == book.FILE)
