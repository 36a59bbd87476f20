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


FOLDER = '''
    """A chapter at work."""
    from minitransformers.reporting import run_chapter

    raise SystemExit(run_chapter(__file__, __doc__, order=["{section}"]))
'''

SECTION = '''
    """Is it relative?"""
    from minitransformers.reporting import Section

    section = Section(__file__, __doc__, kind="exact")

    @section.experiment
    def experiment(rng):
        yield "it", 0, {"error": 0}

    @section.claim("it is relative", paper="p")
    def rule(found):
        """No error."""
        return found["error"]["it"][0] == 0

    if __name__ == "__main__":
        section.main()
'''


BROKEN = SECTION.replace("yield", 'raise RuntimeError("the section broke"); yield')


@pytest.fixture
def small_repository(tmp_path, monkeypatch) -> Path:
    """A checkout with three chapters of one section, of which one breaks, and a site of one page."""
    files = {
        "mkdocs.yml": "site_name: small\ntheme: {name: mkdocs}\nplugins: []\n",
        "docs/index.md": "# Small\n",
    }
    for name, section, text in (("norms", "forgets", SECTION), ("attention", "order", BROKEN), ("positional", "relative", SECTION)):
        files |= {f"chapters/{name}/__main__.py": FOLDER.format(section=section), f"chapters/{name}/{section}.py": text}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.setattr(repository, "root", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path
