"""Where the pages are; importing this also makes the build's own functions importable, as `_hooks`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))


def page_paths() -> list[Path]:
    """Every Markdown page, relative to docs/."""
    return sorted(path.relative_to(DOCS) for path in DOCS.rglob("*.md"))
