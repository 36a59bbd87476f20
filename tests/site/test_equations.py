"""The numbers in a module's header, on its lines and on its page are one set; and the check of that can fail."""

import pytest
from _hooks import code_panel, equations
from site_pages import DOCS, exhibit_of, page_paths

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


@pytest.mark.parametrize("page", [page for page in page_paths() if exhibit_of(page)], ids=str)
def test_header_lines_and_page_agree(page):
    exhibit, markdown = exhibit_of(page), (DOCS / page).read_text(encoding="utf-8")
    problems = equations.problems(exhibit.main.file.read_text(encoding="utf-8"), markdown)
    for form in exhibit.forms:
        problems += equations.problems_of_form(form.file.read_text(encoding="utf-8"), markdown, form.file.name)
    assert not problems, f"docs/{page}: " + "; ".join(problems)


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


def test_another_form_may_bear_the_numbers_of_the_page_alone():
    form = "def fast(g, x):\n    return g * x  # (1)\n"
    assert equations.problems_of_form(form, PAGE, "fast.py") == []
    assert equations.problems_of_form(form.replace("(1)", "(1) (4)"), PAGE, "fast.py") == ["(4) on the code lines of fast.py, but not on the page"]


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
    html = code_panel.render([code_panel.Form("plain", listing)])
    assert listing.first == 10
    assert [(fold.first, fold.last, fold.label) for fold in listing.folds.values()] == [(14, 15, "docstring")]
    assert "import" not in html and 'id="L24"' in html and html.count("(3)") == 1


CHECKED = '''
def scale(g, x, form):
    """One line."""
    n = len(x)
    if not g:
        raise invalid("g")
    for name in ("x", "y"):
        check_finite(name)

    if form != "plain":
        raise invalid("form")
    rows = x.reshape(n, -1)
    out = g * rows  # (1)
    if out is None:
        raise RuntimeError
    return out


@procedure(
    title="Tool",
)
def tool(x):
    if x:
        raise invalid("x")
'''


def test_checks_before_the_first_number_fold_to_one_word():
    listing = code_panel.read(CHECKED, "scale.py")
    assert [(fold.first, fold.last, fold.label) for fold in listing.folds.values()] == [(5, 11, "checks"), (19, 21, "label")]
    html = code_panel.render([code_panel.Form("plain", listing)])
    fold = html[html.index('<details class="fold fold--checks">') :].split("</details>")[0]
    summary, hidden = fold.split("</summary>")
    assert "checks" in summary and "raise" not in summary and 'id="L' not in summary
    assert [f'id="L{line}"' in hidden for line in (4, 5, 6, 11, 12)] == [False, True, True, True, False]


def test_the_panel_opens_at_the_first_numbered_line_of_the_pages_function():
    listing = code_panel.read("a = 1  # (1)\n\n\n@concept(title=1)\ndef scale(x):\n    y = x\n    return y  # (2)\n", "norms/scale.py")
    assert listing.opening(["scale"]) == (4, 6)
    assert listing.opening([]) == (4, 6), "the function of the file's name"
    helped = code_panel.read("def _g(x):\n    y = x\n    return y  # (1)\n\n\ndef f(x):\n    return _g(x)\n", "scale.py")
    assert helped.opening(["f"]) == (1, 2), "its helper stands above it"
    assert code_panel.read("a = 1  # (1)\n\n\ndef f(x):\n    return x\n", "scale.py").opening(["f"]) == (1, 1)
    assert code_panel.read("def f(x):\n    return x\n", "tools.py").opening(["f"]) == (1, 1)


def test_one_form_has_no_tabs_and_several_have_one_each():
    plain, fast = code_panel.read(MODULE, "scale.py"), code_panel.read(MODULE, "scale_fast.py", "scale_fast-L")
    assert "panel__pick" not in code_panel.render([code_panel.Form("plain", plain)])
    html = code_panel.render([code_panel.Form("plain", plain), code_panel.Form("fast", fast)])
    assert html.count("panel__pick") == 2 and html.count(" checked>") == 1 and ">fast</label>" in html
    assert html.count('id="L16" data-eq="1"') == html.count('id="scale_fast-L16" data-eq="1"') == 1


def test_functions_that_share_a_file_are_listed_in_their_order():
    listing = code_panel.read("def b(x):\n    return x\n\n\ndef a(x):\n    return x\n", "tools.py")
    assert '<a href="#L1">b</a><a href="#L5">a</a>' in code_panel.render([code_panel.Form("plain", listing, ("a", "b"))])
    assert "panel__functions" not in code_panel.render([code_panel.Form("plain", listing, ("a",))])


HOW_TO = (DOCS / "how-to-add-a-concept.md").read_text(encoding="utf-8")


def test_the_worked_example_keeps_to_the_rule():
    module = HOW_TO.split("```python\n", 1)[1].split("\n```\n", 1)[0] + "\n"
    page = HOW_TO.split("````markdown\n", 1)[1].split("````", 1)[0]
    assert equations.page_numbers(page) == {1, 2, 3, 4, 5, 6}
    assert equations.problems(module, page) == []
