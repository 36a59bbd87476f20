"""run, tour and docs, on a small repository of their own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import minitransformers
from minitransformers.cli import repository, site


def test_run_shows_the_chapters_own_output(run, small_repository):
    found = run("run", "norms")
    assert found.status == 0
    assert "[exact] it is relative" in found.out
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
    assert "[exact] it is relative" in found.out
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
    assert "unknown section 'norms/forget'; did you mean 'norms/forgets'" in refuses("run", "norms/forget")
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
    assert re.search(r"^norms +\d+\.\d s  1 exact$", found.out, re.MULTILINE)
    assert re.search(r"^attention +\d+\.\d s  FAILED", found.out, re.MULTILINE)
    assert "the section broke" in found.out
    assert (small_repository / "site" / "index.html").is_file()
    assert "minitransformers docs" in found.out
    shutil.rmtree(small_repository / "chapters" / "attention")
    (small_repository / "docs" / "index.md").write_text("# Small\n\n[gone](gone.md)\n")
    found = run("tour")
    assert found.status == 1, "a warning of the site is an error"
    assert re.search(r"^the site +\d+\.\d s  FAILED$", found.out, re.MULTILINE)


def test_tour_names_the_claims_that_fail(run, small_repository):
    pytest.importorskip("mkdocs")
    norms, positional = (small_repository / "chapters" / name for name in ("norms/forgets.py", "positional/relative.py"))
    positional.write_text(positional.read_text().replace("[0] == 0", "[0] == 1"))
    again = positional.read_text().split("@section.claim")[1].split("if __name__")[0]
    more = [f"@section.claim{again}".replace("it is relative", name) for name in ("snow is black → ☃", "grass is red")]
    talkative = norms.read_text().replace("    yield", '    print("much", *range(20), sep="\\n")\n    yield')
    norms.write_text(talkative.replace("if __name__", "\n".join([*more, "if __name__"])), "utf-8")
    found = run("tour")
    assert found.status == 1
    assert re.search(r"^norms +\d+\.\d s  FAILED: 1 exact, 2 fails\n    fails: snow is black → ☃\n    fails: grass is red\n", found.out, re.MULTILINE)
    assert re.search(r"^positional +\d+\.\d s  FAILED: 1 fails\n    fails: it is relative\n", found.out, re.MULTILINE)


def test_tour_names_the_claims_that_are_not_as_recorded(run, small_repository):
    pytest.importorskip("mkdocs")
    for name in ("norms", "attention"):
        shutil.rmtree(small_repository / "chapters" / name)
    assert run("run", "positional").status == 0
    results = small_repository / "docs" / "positional" / "results" / "results.json"
    results.write_text(results.read_text().replace('"state": "exact"', '"state": "fails"').replace('"verdict": "exact"', '"verdict": "it was so"'))
    found = run("tour")
    assert found.status == 1
    assert re.search(r"^positional .*FAILED: 1 exact\n    not as recorded: it is relative: it was: it was so; it is: exact\n", found.out, re.MULTILINE)


DOCS = """
import sys
from pathlib import Path
from minitransformers.cli import repository
from minitransformers.cli.main import main
repository.root = lambda: Path(sys.argv[1])
sys.exit(main(["docs", "--port", sys.argv[2]]))
"""


def test_docs_serves_on_this_machine_only_until_ctrl_c_and_writes_nothing_into_the_checkout(small_repository):
    pytest.importorskip("mkdocs")
    before = sorted(small_repository.rglob("*"))
    command = [sys.executable, "-c", DOCS, str(small_repository)]
    server = subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:(\d+)", server.stdout.readline())
        with urllib.request.urlopen(address.group(), timeout=10) as page:
            assert b"Small" in page.read()
        caches = small_repository / "caches"
        assert [path for path in sorted(small_repository.rglob("*")) if caches not in (path, *path.parents)] == before
        assert [path.name[:5] for path in (caches / "minitransformers").iterdir()] == ["site-"]
        # Another server cannot have the port, and says so in one line. It builds nothing: the site is up to date.
        other = subprocess.run([*command, address.group(1)], capture_output=True, text=True, timeout=30)
        assert other.returncode == 2
        assert re.fullmatch(rf"minitransformers: port {address.group(1)}: .*\n", other.stderr)
    finally:
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=10)
    assert server.returncode == 130
    assert errors == "building the site ...\n"


def test_docs_that_cannot_be_built_leave_the_site_as_it_was(run, small_repository):
    pytest.importorskip("mkdocs")
    folder = site.cache(small_repository)
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("old")
    os.utime(folder / "index.html", (1e9, 1e9))
    (small_repository / "docs" / "index.md").write_text("# Small\n\n[gone](gone.md)\n")
    for _ in range(2):                                       # what was not built to its end is not served the second time either
        found = run("docs", "--port", "0")
        assert found.status == 1 and "gone.md" in found.err
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]
        assert (folder / "index.html").read_text() == "old"


def test_the_site_of_docs_is_among_the_users_caches_one_for_each_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    one, other = site.cache(tmp_path / "one"), site.cache(tmp_path / "other")
    assert one == site.cache(tmp_path / "one") != other and one.parent == other.parent == tmp_path / "minitransformers"
    monkeypatch.delenv("XDG_CACHE_HOME")
    for platform, place in [("linux", ".cache"), ("darwin", "Library/Caches"), ("win32", "AppData/Local")]:
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.delenv("LOCALAPPDATA", raising=False)
        assert site.cache(tmp_path).parent == Path.home() / place / "minitransformers"


def test_docs_builds_where_a_page_is_newer_than_the_site(small_repository):
    folder = site.cache(small_repository)
    assert site._out_of_date(small_repository, folder)
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("")
    os.utime(folder / "index.html", (4e9, 4e9))
    assert not site._out_of_date(small_repository, folder)
    os.utime(small_repository / "docs" / "index.md", (5e9, 5e9))
    assert site._out_of_date(small_repository, folder)


def test_docs_refuses_a_port_that_does_not_exist(refuses):
    assert "--port" in refuses("docs", "--port", "70000")


def test_the_real_repository_is_found():
    assert (repository.root() / "pyproject.toml").is_file()
