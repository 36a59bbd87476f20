"""Where the repository is: chapter scripts and pages are there, not in the installed package."""

from __future__ import annotations

from pathlib import Path

import minitransformers
from minitransformers.reporting.arguments import UsageError


def root() -> Path:
    """The folder of the checkout that the package was installed from. Raises UsageError where there is none."""
    folder = Path(minitransformers.__file__).resolve().parent.parent
    if not (folder / "mkdocs.yml").is_file():
        raise UsageError("this needs the repository, not only the package: clone it and `pip install -e .` there")
    return folder


def scripts() -> dict[str, Path]:
    """Chapter to its folder of sections, which Python runs, in reading order."""
    order = {name: i for i, name in enumerate(minitransformers.catalogue.READING_ORDER)}
    found = {path.parent.name: path.parent for path in (root() / "chapters").glob("*/__main__.py")}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def sections(chapter: Path) -> dict[str, Path]:
    """"chapter/section" to the section's file."""
    files = sorted(path for path in chapter.glob("*.py") if not path.name.startswith("_"))
    return {f"{chapter.name}/{path.stem}": path for path in files}
