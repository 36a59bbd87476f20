"""The parts of the build, one by one: measured numbers, tables, claims, figures, navigation."""

import json
from dataclasses import replace

import pytest
from _hooks import figures, museum, navigation, parts, prose, results
from site_pages import DOCS

from minitransformers import catalogue

RESULTS = {
    "chapter": "norms",
    "seed": 0,
    "environment": {"numpy": "2.4.0"},
    "values": {"rms_norm": {"cost": {"ratio": 0.7312}, "error": 3.2e-9, "name": "fast", "drop": -0.25, "n": 12345, "count": 23456.7}},
    "claims": [{"name": "Faster", "paper": "7 %", "expect": "less", "measured": 0.73, "state": "mixed", "verdict": "holds in 2 of 3"}],
    "tables": {"speed": {"columns": ["width", "ms | s"], "rows": [[64, 0.0123], [1280, None]]}},
}


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "norms" / "results"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    return tmp_path


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[[rms_norm.cost.ratio|.2f]]", "0.73"),
        ("[[rms_norm.cost.ratio]]", "0.731"),
        ("[[rms_norm.error]]", "3.2·10⁻⁹"),
        ("[[rms_norm.error|.0e]]", "3·10⁻⁹"),
        ("[[rms_norm.drop|.2f]]", "−0.25"),
        ("[[rms_norm.n|,]]", "12,345"),
        ("[[rms_norm.name]]", "fast"),
        ("[[rms_norm.count]]", "23,457"),
        ("[[/norms/rms_norm.cost.ratio|.1%]]", "73.1%"),
        ("x[[1, 2]] and [[word]]", "x[[1, 2]] and [[word]]"),
    ],
)
def test_numbers_come_from_the_results(docs, written, shown):
    warnings = []
    assert results.fill(written, docs, "norms", warnings.append) == shown
    assert not warnings


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("[[rms_norm.cost.time]]", "'time' is not among ratio"),
        ("[[rms_norm.error.more]]", "it is a value"),
        ("[[/vision/patches.count]]", "vision/results/results.json is missing"),
        ("[[rms_norm.name|.2f]]", "Unknown format code"),
        ("[[table:memory]]", "no table 'memory', only speed"),
    ],
)
def test_what_was_not_measured_is_reported(docs, written, reason):
    warnings = []
    results.fill(written, docs, "norms", warnings.append)
    assert len(warnings) == 1 and reason in warnings[0] and written in warnings[0]


def test_code_is_left_alone():
    page = "a `[[x.y]]` [[x.y]]\n\n```python\n[[x.y]]\n```\n\n    ~~~\n    [[x.y]]\n    ~~~\n\n``[[x.y]] ` `` [[x.y]]\n"
    assert prose.outside_code(page, lambda text: text.replace("[[x.y]]", "1")).count("[[x.y]]") == 4
    assert prose.title("```\n# no\n```\n# Yes #\n", "default") == "Yes"


def test_tables_and_claims(docs):
    text = results.fill("[[table:speed]]\n\n[[claims]]\n\n[[environment]]\n", docs, "norms", pytest.fail)
    assert "| width | ms \\| s |\n| ---: | ---: |\n| 64 | 0.0123 |\n| 1,280 | – |" in text
    assert "claim--scale" in text and "holds in 2 of 3" in text and "0.73" in text
    assert "numpy 2.4.0 · seed 0" in text


SVG = """<?xml version="1.0"?><!DOCTYPE svg><svg width="300pt" height="150pt" viewBox="0 0 300 150" xmlns:xlink="x">
<metadata>when and where</metadata><style type="text/css">*{stroke-linejoin: round}</style>
<clipPath id="p1"/><path clip-path="url(#p1)" style="stroke: #000000; fill: #0000ff"/><use xlink:href="#p1"/></svg>"""


def test_a_figure_takes_the_colour_of_the_text_and_keeps_its_ids_to_itself():
    svg = figures.inline_svg(SVG, "fig1", "Speed")
    assert 'id="fig1-p1"' in svg and "url(#fig1-p1)" in svg and 'href="#fig1-p1"' in svg
    assert "stroke: currentColor; fill: #0000ff" in svg
    assert "#fig1 *{" in svg and "metadata" not in svg and "<?xml" not in svg
    assert 'style="max-width:400px"' in svg and 'role="img"' in svg and "300pt" not in svg


def test_a_missing_figure_is_reported(docs):
    warnings = []
    figures.mark("![Speed](results/speed.svg)", docs / "norms", warnings.append)
    assert warnings == ["the figure results/speed.svg is missing: run the chapter's script"]


def test_figures_on_lines_that_follow_each_other_stand_side_by_side(docs):
    for name in ("a", "b", "c"):
        (docs / "norms" / f"{name}.svg").write_text(SVG)
    text = figures.mark("![A](a.svg)\n![B](b.svg)\n\nWords.\n\n![C](c.svg)\n", docs / "norms", pytest.fail)
    pair, alone = text.split("Words.")
    assert pair.startswith('<div class="plates" markdown="1">\n<figure') and pair.count("<figure ") == 2 and "</div>\n\n" in pair
    assert alone.count("<figure ") == 1 and "plates" not in alone


TABLE = "<table>\n<thead>\n<tr>\n<th>{}</th>\n<th>{}</th>\n<th{}>{}</th>\n</tr>\n</thead></table>"


@pytest.mark.parametrize(
    ("heads", "named"),
    [
        (("symbol", "shape", "", "meaning"), True),
        (("Symbol", "Shape", ' style="text-align: left;"', "Meaning"), True),
        (("Symbol", "Shape", "", "What it decides"), False),
    ],
)
def test_a_table_of_symbols_is_told_by_its_heads(heads, named):
    assert ('<table class="symbols">' in parts.name_parts(TABLE.format(*heads))) is named


def test_the_question_of_an_exercise_has_an_address():
    html = parts.name_parts("<p><strong>Exercise 2.</strong> Why?</p><p><strong>Exercise</strong></p>")
    assert html == '<p class="exercise" id="exercise-2"><strong>Exercise 2.</strong> Why?</p><p><strong>Exercise</strong></p>'


def test_pages_come_as_the_index_links_to_them_and_chapters_in_reading_order(tmp_path):
    for name in ("zebra/a.md", "norms/a.md", "norms/b.md", "norms/c.md", "basics/linear.md", "index.md", "training.md", "glossary.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("# Page\n")
    (tmp_path / "norms" / "index.md").write_text("# Norms\n\nFirst [c](c.md), then [b](b.md#x), again [c](c.md).\n")
    assert navigation.build(tmp_path) == [
        {"Home": "index.md"},
        {"Basics": ["basics/linear.md"]},
        {"Norms": ["norms/index.md", "norms/c.md", "norms/b.md", "norms/a.md"]},
        {"Zebra": ["zebra/a.md"]},
        "training.md",
        "glossary.md",
    ]


def test_sources_link_to_arxiv():
    link = '<a href="https://arxiv.org/abs/1910.07467">arXiv:1910.07467</a>'
    assert museum.source_html("Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4") == f"Zhang &amp; Sennrich 2019, {link}, eq. 4"
    assert "abs/cmp-lg/9406033)" in museum.source_markdown("Old 1994, arXiv:cmp-lg/9406033")


def test_the_line_under_the_title_shows_what_was_checked():
    entry = catalogue.concepts()["rms_norm"]
    line = museum.museum_line([entry], "minitransformers/norms/rms_norm.py", {"gradient": 3.1e-10, "parity": None}, [("Forward", "forward")])
    assert "<b>Largest relative error</b>" in line and "3·10⁻¹⁰ of the gradient against central differences" in line
    assert "published" not in line and "no gradient" not in line and '<a href="#forward">Forward</a>' in line
    line = museum.museum_line([entry], "x.py", {"gradient": 1e-10, "parity": 0.0}, [])
    assert "1·10⁻¹⁰ of the gradient" in line and ">0 against a published implementation" in line


def test_the_line_of_procedures_names_each_source_once_and_says_what_they_are():
    procedure = replace(catalogue.concepts()["rms_norm"], is_procedure=True, source="Ba 2016")
    line = museum.museum_line([procedure, procedure, replace(procedure, source="Xu 2019")], "x.py", {}, [])
    assert "<b>Source</b> Ba 2016; Xu 2019<" in line and "<b>Procedure</b> they have no gradient" in line and "error" not in line


def test_tables_have_concepts_and_procedures_and_say_which_is_which(tmp_path):
    concept = catalogue.concepts()["rms_norm"]
    tool = replace(concept, name="tool", title="Tool", roles=(), is_procedure=True)
    checks = {"rms_norm": {"gradient": 2e-13, "parity": 0.0}}
    table = museum.concept_table([concept, tool], checks, lambda entry: f"[{entry.title}]({entry.page}.md)")
    assert "| Concept | Role | Source | Gradient error | Parity error |" in table and 'class="legend"' in table
    assert "| [RMSNorm](rms_norm.md) | norm | " in table and "| 2·10⁻¹³ | 0 |" in table
    assert "| [Tool](rms_norm.md) | procedure | " in table
    assert "legend" not in museum.concept_table([tool], {}, lambda entry: entry.title)
    home = museum.catalogue_table({"norms": "Norms", "basics": "Basics"}, [tool, concept], tmp_path, lambda entry: entry.title)
    norms, basics = home.splitlines()[4:6]
    assert norms.startswith('| Norms<br><span class="said">Normalisation: ') and norms.endswith("| RMSNorm<br>*Procedures:* Tool |")
    assert basics.startswith('| Basics<br><span class="said">Linear maps') and basics.endswith("|  |")


def test_every_chapter_with_pages_has_an_index():
    missing = [name for name in navigation.chapters(DOCS) if not (DOCS / name / "index.md").is_file()]
    assert not missing, f"chapters without docs/<chapter>/index.md: {', '.join(missing)}"
