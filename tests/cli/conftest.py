"""A command as a person starts it, and a small repository for the commands that need one."""

import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from minitransformers.cli import repository
from minitransformers.cli.main import main


class Run(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capfd):
    """``run("check", "linear")`` -> exit code, stdout, stderr."""

    def started(*arguments: object) -> Run:
        capfd.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        return Run(status, *capfd.readouterr())

    return started


@pytest.fixture
def refuses(run):
    """Holds that a call ends in one clear line on stderr, nothing on stdout and exit code 2; returns the line."""

    def refused(*arguments: object) -> str:
        found = run(*arguments)
        assert found.status == 2
        assert found.out == ""
        assert found.err.startswith("minitransformers: ") and found.err.count("\n") == 1, found.err
        return found.err

    return refused


GOOD_CHAPTER = '''
    """Norms at work."""
    from minitransformers.reporting.chapter import Chapter

    chapter = Chapter("norms", __doc__)
    chapter.value("norms.draw", chapter.rng().random())
    chapter.claim("it holds", paper="p", expect="e", measured="m", holds=True)
    chapter.finish()
'''

BAD_CHAPTER = '''
    """Attention at work."""
    from minitransformers.reporting.chapter import Chapter

    raise RuntimeError("the chapter broke")
'''


@pytest.fixture
def small_repository(tmp_path, monkeypatch) -> Path:
    """A checkout with two chapters, of which one breaks, and a site of one page."""
    files = {
        "mkdocs.yml": "site_name: small\ntheme: {name: mkdocs}\nplugins: []\n",
        "docs/index.md": "# Small\n",
        "chapters/norms.py": GOOD_CHAPTER,
        "chapters/attention.py": BAD_CHAPTER,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.setattr(repository, "root", lambda: tmp_path)
    return tmp_path
