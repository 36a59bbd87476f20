"""Where the pages are; importing this also makes the build's own functions importable, as `_hooks`."""

import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))


@cache
def exhibit_of(page: Path):
    """What a page, relative to docs/, explains; None where it explains no module."""
    from _hooks import exhibits

    from minitransformers import catalogue

    return exhibits.beside(page, catalogue.entries(), ROOT / "minitransformers")


def page_paths() -> list[Path]:
    """Every Markdown page, relative to docs/."""
    return sorted(path.relative_to(DOCS) for path in DOCS.rglob("*.md"))
