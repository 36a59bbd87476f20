"""The strict build refuses a page that drifted from its module or from what was measured."""

import os
import shutil
import subprocess
import sys

import pytest
from site_pages import DOCS, ROOT

MODULE = '"""Scale.\n\n    y = g x                                                  (1)\n"""\n\n\ndef scale(g, x):\n    return g * x  # (1)\n'
PAGE = "# Scale\n\n$$ y = g x \\tag{1} $$\n"


def test_the_site_builds_without_a_warning(site, build):
    assert build.code == 0, f"mkdocs build --strict:\n{build.warnings}"


@pytest.fixture
def small_build(tmp_path):
    """Build a site of one page beside one module; returns the exit code and what was said."""
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    docs = tmp_path / "docs"
    shutil.copytree(DOCS / "_hooks", docs / "_hooks", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(DOCS / "assets", docs / "assets")
    for source in (ROOT / "mkdocs.yml", DOCS / "hooks.py"):
        shutil.copy(source, tmp_path / source.relative_to(ROOT))
    for folder in ("docs/norms", "minitransformers/norms"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "minitransformers/norms/scale.py").write_text(MODULE)
    (docs / "index.md").write_text("# Home\n")

    def run(page: str) -> tuple[int, str]:
        (docs / "norms/scale.md").write_text(page)
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(tmp_path / "mkdocs.yml"), "-d", str(tmp_path / "out")]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_page_that_agrees_is_built(small_build):
    code, said = small_build(PAGE)
    assert code == 0, said


def test_everything_that_is_wrong_is_named_at_once(small_build):
    code, said = small_build(PAGE.replace("tag{1}", "tag{2}") + "\n[[scale.ratio]]\n\n![Speed](results/speed.svg)\n")
    assert code == 1
    assert "docs/norms/scale.md: (1) missing from the page, but in the module's header and the code lines" in said
    assert "docs/norms/scale.md: (2) missing from the module's header, but in the page" in said
    assert "[[scale.ratio]]: norms/results/results.json is missing" in said
    assert "the figure results/speed.svg is missing" in said
