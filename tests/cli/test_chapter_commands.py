"""run, tour and docs, on a small repository of their own."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

import minitransformers
from minitransformers.cli import repository


def test_run_shows_the_chapters_own_output(run, small_repository):
    found = run("run", "norms")
    assert found.status == 0
    assert "[holds] it holds" in found.out
    assert (small_repository / "docs" / "norms" / "results" / "results.json").is_file()


def test_run_quick_writes_nothing(run, small_repository):
    assert run("run", "norms", "--quick").status == 0
    assert not (small_repository / "docs" / "norms").exists()


def test_run_as_json(run, small_repository):
    found = json.loads(run("run", "norms", "--quick", "--seed", "5", "--json").out)
    assert found["norms"]["seed"] == 5


def test_run_goes_on_after_a_chapter_that_breaks(run, small_repository):
    found = run("run", "--quick")
    assert found.status == 1
    assert "[holds] it holds" in found.out
    assert "minitransformers: failed: attention" in found.err


@pytest.mark.parametrize("name", ["positional", "positional/relative"])
def test_run_a_chapter_of_sections_or_one_of_them(run, small_repository, name):
    found = run("run", name)
    assert found.status == 0
    assert "[exact] it is relative" in found.out
    assert (small_repository / "docs" / "positional" / "results" / "results.json").is_file()
    assert list(json.loads(run("run", name, "--quick", "--json").out)) == [name]


def test_run_refuses_an_unknown_section(refuses, small_repository):
    assert "unknown section 'positional/relativ'; did you mean 'positional/relative'" in refuses("run", "positional/relativ")
    assert "norms has no sections: it is one script" in refuses("run", "norms/relative")
    assert "unknown chapter 'position'; did you mean 'positional'" in refuses("run", "position/relative")


def test_run_refuses_an_unknown_chapter(refuses, small_repository):
    assert "unknown chapter 'norm'; did you mean 'norms'" in refuses("run", "norm")


@pytest.mark.parametrize("command", [("run", "norms"), ("tour",), ("docs",), ("check", "linear", "--write")])
def test_without_the_repository_it_says_so(refuses, monkeypatch, tmp_path, command):
    monkeypatch.setattr(minitransformers, "__file__", str(tmp_path / "site-packages" / "minitransformers" / "__init__.py"))
    assert "needs the repository" in refuses(*command)


def test_tour_visits_every_chapter_reports_what_failed_and_builds_the_site(run, small_repository):
    pytest.importorskip("mkdocs")
    found = run("tour")
    assert found.status == 1
    assert re.search(r"^norms +\d+\.\d s  1 holds$", found.out, re.MULTILINE)
    assert re.search(r"^attention +\d+\.\d s  FAILED", found.out, re.MULTILINE)
    assert "the chapter broke" in found.out
    assert (small_repository / "site" / "index.html").is_file()
    assert "minitransformers docs" in found.out
    (small_repository / "chapters" / "attention.py").unlink()
    (small_repository / "docs" / "index.md").write_text("# Small\n\n[gone](gone.md)\n")
    found = run("tour")
    assert found.status == 1, "a warning of the site is an error"
    assert re.search(r"^the site +\d+\.\d s  FAILED$", found.out, re.MULTILINE)


def test_docs_serves_on_this_machine_only_until_ctrl_c(small_repository):
    (small_repository / "site").mkdir()
    (small_repository / "site" / "index.html").write_text("<title>small</title>")
    program = (
        "import sys; from pathlib import Path; from minitransformers.cli import repository; from minitransformers.cli.main import main;"
        "import minitransformers.cli.site as site; site._out_of_date = lambda root: False;"
        f"repository.root = lambda: Path({str(small_repository)!r}); sys.exit(main(['docs', '--port', '0']))"
    )
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:(\d+)", server.stdout.readline())
        with urllib.request.urlopen(address.group(), timeout=10) as page:
            assert b"small" in page.read()
        # Another server cannot have the port, and says so in one line.
        other = subprocess.run([sys.executable, "-c", program.replace("'0'", f"'{address.group(1)}'")], capture_output=True, text=True, timeout=30)
        assert other.returncode == 2
        assert re.fullmatch(rf"minitransformers: port {address.group(1)}: .*\n", other.stderr)
    finally:
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=10)
    assert server.returncode == 130
    assert errors == ""


def test_docs_builds_where_a_page_is_newer_than_the_site(small_repository):
    from minitransformers.cli.site import _out_of_date

    assert _out_of_date(small_repository)
    (small_repository / "site").mkdir()
    built = small_repository / "site" / "index.html"
    built.write_text("")
    os.utime(built, (4e9, 4e9))
    assert not _out_of_date(small_repository)
    os.utime(small_repository / "docs" / "index.md", (5e9, 5e9))
    assert _out_of_date(small_repository)


def test_docs_refuses_a_port_that_does_not_exist(refuses):
    assert "--port" in refuses("docs", "--port", "70000")


def test_the_real_repository_is_found():
    assert (repository.root() / "pyproject.toml").is_file()


def test_a_reader_that_stops_early_is_no_error():
    command = f"{sys.executable} -m minitransformers list --json | head -1"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30)
    assert (found.stdout, found.stderr) == ("[\n", "")
