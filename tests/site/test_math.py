"""Every formula of every page is set without an error, by the strictest settings."""

import html
import re

import pytest
from site_pages import page_paths

pytestmark = pytest.mark.browser

FORMULA = re.compile(r'<(div|span) class="arithmatex">(.*?)</\1>', re.DOTALL)
SET_ALL = r"""
return arguments[0].flatMap(([tex, displayMode]) => {
  try { katex.renderToString(tex, { displayMode, throwOnError: true, strict: "error" }); return []; }
  catch (error) { return [`${tex}\n    ${error.message}`]; }
});
"""


@pytest.fixture(scope="module")
def setter(browser, site):
    """A page with KaTeX in it and nothing else."""
    browser.get("about:blank")
    browser.execute_script((site / "assets/katex/katex.min.js").read_text(encoding="utf-8") + ";window.katex = window.katex || katex;")
    return browser


def formulas(text: str) -> list[tuple[str, bool]]:
    """TeX and whether it stands alone, for each formula of a built page."""
    return [(html.unescape(tex).strip()[2:-2], kind == "div") for kind, tex in FORMULA.findall(text)]


@pytest.mark.parametrize("page", page_paths(), ids=str)
def test_formulas(page, site, setter):
    found = formulas((site / page).with_suffix(".html").read_text(encoding="utf-8"))
    errors = setter.execute_script(SET_ALL, found) if found else []
    assert not errors, "\n".join(errors)


def test_a_wrong_formula_is_refused(setter):
    assert setter.execute_script(SET_ALL, [[r"\frac{a}{", True], [r"\nosuch", False], ["a", False]]).__len__() == 2
