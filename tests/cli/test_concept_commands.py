"""list, check, show and bench."""

import json
import re
import sys

import numpy as np
import pytest

from minitransformers import __version__, catalogue
from minitransformers.foundation.catalogue import Entry, Example

COMMANDS = ("list", "check", "show", "bench", "run", "tour", "docs", "train", "generate")


def test_version(run):
    assert run("--version").out == f"minitransformers {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_an_example(run, command):
    help_text = run(command, "--help").out
    assert re.search(rf"\nexample:\n  minitransformers {command}\b.*\n\Z", help_text)


@pytest.mark.parametrize("command", [("foo",), ("check", "--sed", "1"), ("show",), ("check", "linear", "--seed", "-1")])
def test_a_wrong_call_is_one_line(refuses, command):
    refuses(*command)


def test_list_shows_every_concept_and_procedure(run):
    found = run("list")
    assert found.status == 0
    assert [line.split()[0] for line in found.out.splitlines()[2:-2]] == list(catalogue.entries())
    assert found.out.endswith(f"\n{len(catalogue.concepts())} concepts, {len(catalogue.procedures())} procedures\n")


def test_list_by_role_and_chapter(run):
    entries = json.loads(run("list", "--role", "norm", "--chapter", "norms", "--json").out)
    assert {"layer_norm", "rms_norm"} <= {entry["name"] for entry in entries}
    assert all(entry["roles"] == ["norm"] and entry["chapter"] == "norms" for entry in entries)


def test_list_suggests_the_chapter_and_the_role_that_was_meant(refuses):
    assert "did you mean 'norms'" in refuses("list", "--chapter", "norm")
    assert "did you mean 'mixer'" in refuses("list", "--role", "mixr")


def test_check_gives_a_row_a_concept_and_states_the_worst(run):
    found = run("check", "linear", "rms_norm", "linear")
    assert found.status == 0
    rows = found.out.splitlines()
    assert [row.split()[0] for row in rows[2:4]] == ["linear", "rms_norm"]
    assert all(row.endswith("passed") for row in rows[2:4])
    assert re.search(r"2 checked, 0 failed; worst gradient error \d\.\de-\d\d \((linear|rms_norm)\)\n", found.out)


def test_list_and_check_take_chapters_and_single_names(run):
    norms = list(catalogue.entries(chapter="norms"))
    listed = json.loads(run("list", "norms", "rope", "rms_norm", "--json").out)
    assert [entry["name"] for entry in listed] == [*norms, "rope"]
    assert [entry["name"] for entry in json.loads(run("list", "norms", "linear", "--role", "norm", "--json").out)] == [
        name for name in norms if catalogue.find(name).has_role("norm")
    ]
    found = run("check", "norms", "linear")
    assert found.status == 0
    assert [row.split()[0] for row in found.out.splitlines()[2:-2]] == [*norms, "linear"]


@pytest.mark.parametrize("command", ["list", "check", "bench"])
def test_an_unknown_name_suggests_a_chapter_too_and_does_not_print_all(refuses, command):
    line = refuses(command, "nroms")
    assert line == "minitransformers: unknown chapter, concept or procedure 'nroms'; did you mean 'norms'? (`minitransformers list` shows all)\n"


def test_an_unknown_name_does_not_print_all_where_nothing_is_near(refuses):
    assert refuses("check", "zzz") == "minitransformers: unknown chapter, concept or procedure 'zzz' (`minitransformers list` shows all)\n"
    assert len(refuses("show", "zzz")) < 120


def test_check_says_why_autograd_found_nothing(run, monkeypatch):
    assert re.search(r"^silu .*  not traceable: out=  ", run("check", "silu").out, re.MULTILINE)
    assert re.search(r"^causal_mask  –  .*  no gradient  ", run("check", "causal_mask").out, re.MULTILINE)
    assert json.loads(run("check", "rms_norm", "--json").out)["rms_norm"]["no autograd"] == "not traceable: np.vecdot"
    assert json.loads(run("check", "linear", "--json").out)["linear"]["no autograd"] is None
    monkeypatch.setitem(sys.modules, "autograd", None)
    assert re.search(r"^linear .*  not installed  ", run("check", "linear").out, re.MULTILINE)


def test_check_as_json(run):
    found = json.loads(run("check", "linear", "--json", "--seed", "3").out)
    assert found["linear"]["gradient"] < 1e-8
    assert found["linear"]["failures"] == []


def broken(x):
    """Twice x, with half of the gradient."""
    return 2 * x, lambda dout: dout


@pytest.fixture
def broken_entry(monkeypatch):
    entry = Entry("broken", "basics", "Broken", "nowhere", broken, lambda rng: Example((rng.normal(size=3),), {}))
    monkeypatch.setattr(catalogue, "entries", lambda **_: {"broken": entry})


def test_check_fails_with_the_concept(run, broken_entry):
    found = run("check")
    assert found.status == 1
    assert "FAILED" in found.out and "a factor 2 is missing" in found.out
    assert "1 checked, 1 failed" in found.out


def test_check_reports_a_concept_that_breaks_and_goes_on(run, broken_entry, monkeypatch):
    def crashes(x):
        raise TypeError("no such thing")

    entry = catalogue.entries()["broken"]
    crashing = Entry("crashing", "basics", "Crashing", "nowhere", crashes, entry.make_example)
    monkeypatch.setattr(catalogue, "entries", lambda **_: {"crashing": crashing, "broken": entry})
    found = run("check")
    assert found.status == 1
    assert "crashing: gradients: TypeError: no such thing" in found.out
    assert "2 checked, 2 failed" in found.out


def test_check_writes_what_the_site_shows_and_keeps_what_others_wrote(run, small_repository):
    path = small_repository / "docs" / "checks.json"
    path.write_text(json.dumps({"linear": {"parity": 1e-12}, "gone": {"gradient": 1.0}}))
    assert run("check", "linear", "--write").status == 0
    stored = json.loads(path.read_text())
    assert set(stored["linear"]) == {"gradient", "order", "autograd", "parity"}
    assert stored["gone"] == {"gradient": 1.0}


def test_check_of_everything_forgets_concepts_that_are_gone(run, small_repository, monkeypatch):
    linear = catalogue.find("linear")
    monkeypatch.setattr(catalogue, "entries", lambda **_: {"linear": linear})
    path = small_repository / "docs" / "checks.json"
    path.write_text(json.dumps({"gone": {"gradient": 1.0}}))
    run("check", "--write")
    assert list(json.loads(path.read_text())) == ["linear"]


@pytest.mark.parametrize("command", ["check", "show", "bench"])
def test_an_unknown_concept_is_refused_with_a_suggestion(refuses, command):
    assert "did you mean 'rms_norm'" in refuses(command, "rmsnorm")


def test_show_says_what_a_concept_is(run):
    text = run("show", "rms_norm").out
    assert "Zhang and Sennrich 2019" in text
    assert "https://arxiv.org/abs/1910.07467" in text
    assert 'Float[Array, "... d_model"]' in text
    assert re.search(r"minitransformers/norms/rms_norm\.py$", text, re.MULTILINE)
    assert re.findall(r"\((\d+)\)$", text, re.MULTILINE)[:3] == ["1", "2", "3"]


def test_show_prints_the_ranges_of_settings(run):
    assert re.search(r"^eps +a finite number (above 0|of at least 0) +1e-\d+$", run("show", "rms_norm").out, re.MULTILINE)
    text = run("show", "key_value_cache").out
    assert "procedure: it has no gradient" in text
    assert re.search(r"^window +a whole number of at least 1 or None +None$", text, re.MULTILINE)
    assert re.search(r"^form of +selective_scan$", run("show", "selective_scan_blocks").out, re.MULTILINE)


def test_a_procedure_is_checked_and_timed_and_has_no_gradient(run):
    (row,) = run("check", "key_value_cache").out.splitlines()[2:3]
    assert row.split()[1:5] == ["–", "–", "no", "gradient"] and row.endswith("passed")
    assert run("bench", "key_value_cache").status == 0


def test_bench_compares_with_linear(run):
    found = run("bench", "linear", "rms_norm", "--json")
    times = json.loads(found.out)
    assert list(times) == ["linear", "rms_norm"]
    assert times["linear"]["ratio to linear"] == 1.0
    assert all(np.isfinite(value) and value > 0 for row in times.values() for value in row.values())
    assert "ratio to linear" in run("bench", "softmax").out
