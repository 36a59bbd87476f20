"""Parts of a page that Markdown has no word for: they are told by what is written in them."""

import re

_SYMBOLS = re.compile(
    r"<table>(?=\s*<thead>\s*<tr>" + "".join(rf"\s*<th[^>]*>{head}</th>" for head in ("symbol", "shape", "meaning")) + r"\s*</tr>)",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"<p>(?=<strong>Exercise (\d+)\.</strong>)")


def name_parts(html: str) -> str:
    """Give a table of symbols and the questions of exercises a class each, and a question its address."""
    html = _SYMBOLS.sub('<table class="symbols">', html)
    return _QUESTION.sub(r'<p class="exercise" id="exercise-\1">', html)
