"""Every block marked `python` on every page runs, and prints what the page says it prints."""

from doctest import ELLIPSIS, NORMALIZE_WHITESPACE

import pytest
from site_pages import DOCS, page_paths

from minitransformers import catalogue

sybil = pytest.importorskip("sybil", reason="sybil is not installed")
from sybil.parsers.markdown import PythonCodeBlockParser

READER = sybil.Sybil(parsers=[PythonCodeBlockParser(doctest_optionflags=ELLIPSIS | NORMALIZE_WHITESPACE)])
PAGES = [page for page in page_paths() if "```python" in (DOCS / page).read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_code_on_the_page(page, monkeypatch):
    known = dict(catalogue.entries())
    monkeypatch.setattr(catalogue, "_entries", known)  # what a page labels stays on the page
    document = READER.parse(DOCS / page)
    document.namespace["__name__"] = f"docs.{page.stem.replace('-', '_')}"
    for example in document.examples():
        example.evaluate()
