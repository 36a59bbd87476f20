"""The numbers in a module's header, on its lines and on its page are one set; and the check of that can fail."""

from pathlib import Path

import pytest
from _hooks import code_panel, equations
from site_pages import DOCS, ROOT, page_paths

from minitransformers import catalogue

MODULE = '''"""Scale.

    y = g x                                                  (1)
    dx = g dy                                                (2)
    dg = sum x dy                                            (3)
"""

import numpy as np

LIMIT = 3  # a comment with a shape (2, 3)


def scale(g, x):
    """Docs that mention (9)
    and go on."""
    out = g * x                                              # (1)

    def backward(dy):
        return (
            g * dy,
            np.sum(x * dy),  # all positions  (2) (3)
        )

    return out, backward
'''
PAGE = r"""
# Scale

$$ y = g x \tag{1} $$

$$
\bar x = g \bar y \tag{2}
$$

    $$ \bar g = \sum x \bar y \tag{3} $$

```text
$$ not a formula \tag{7} $$
```
"""


def module_beside(page: Path) -> Path:
    return (ROOT / "minitransformers" / page).with_suffix(".py")


@pytest.mark.parametrize("page", [page for page in page_paths() if module_beside(page).is_file()], ids=str)
def test_header_lines_and_page_agree(page):
    problems = equations.problems(module_beside(page).read_text(encoding="utf-8"), (DOCS / page).read_text(encoding="utf-8"))
    assert not problems, f"docs/{page}: " + "; ".join(problems)


def test_every_concept_has_a_page():
    missing = [f"{e.chapter}/{e.name}.md" for e in catalogue.concepts().values() if not (DOCS / e.chapter / f"{e.name}.md").is_file()]
    assert not missing, f"concepts without a page: {', '.join(missing)}"


def test_a_complete_set_passes():
    assert equations.header_numbers(MODULE) == equations.line_numbers(MODULE) == equations.page_numbers(PAGE) == {1, 2, 3}
    assert equations.problems(MODULE, PAGE) == []


@pytest.mark.parametrize(
    ("module", "page", "message"),
    [
        (MODULE.replace("  (2) (3)", "  (2)"), PAGE, "(3) missing from the code lines, but in the module's header and the page"),
        (MODULE.replace("dg = sum x dy                                            (3)", ""), PAGE, "(3) missing from the module's header"),
        (MODULE, PAGE.replace(r"\tag{1}", ""), "(1) missing from the page, but in the module's header and the code lines"),
        (MODULE, PAGE + "\n$$ z \\tag{4} $$\n", "(4) missing from the module's header, but in the page"),
        (MODULE, PAGE.replace(r"y = g x \tag{1}", r"y = g x \tag{1} \tag{2}"), "one formula has the tags 1, 2"),
    ],
    ids=["line missing", "header missing", "tag missing", "tag too many", "two tags in a formula"],
)
def test_the_check_refuses(module, page, message):
    problems = equations.problems(module, page)
    assert any(message in problem for problem in problems), problems


def test_the_numbers_leave_the_code_and_the_rest_of_the_comment_stays():
    lines, marks = equations.split_comments(MODULE)
    assert lines[15] == "    out = g * x"
    assert lines[20] == "            np.sum(x * dy),  # all positions"
    assert marks == {16: (1,), 21: (2, 3)}


def test_a_word_to_a_tool_may_follow_the_number():
    lines, marks = equations.split_comments("x = 1  # why  (2)  # fmt: skip\n")
    assert lines == ["x = 1  # why"] and marks == {1: (2,)}


def test_a_number_in_a_long_statement_lights_all_of_it():
    listing = code_panel.read(MODULE, "scale.py")
    assert listing.lines_of(1) == [16]
    assert listing.lines_of(3) == [19, 20, 21, 22]


def test_the_panel_starts_after_the_imports_and_folds_docstrings():
    listing = code_panel.read(MODULE, "scale.py")
    html = code_panel.render(listing)
    assert listing.first == 10
    assert [(fold.first, fold.last, fold.label) for fold in listing.folds.values()] == [(14, 15, "docstring")]
    assert "import" not in html and 'id="L24"' in html and html.count("(3)") == 1


HOW_TO = (DOCS / "how-to-add-a-concept.md").read_text(encoding="utf-8")


def test_the_worked_example_keeps_to_the_rule():
    module = HOW_TO.split("```python\n", 1)[1].split("\n```\n", 1)[0] + "\n"
    page = HOW_TO.split("````markdown\n", 1)[1].split("````", 1)[0]
    assert equations.page_numbers(page) == {1, 2, 3, 4, 5, 6}
    assert equations.problems(module, page) == []
