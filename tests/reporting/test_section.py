"""Sections of a chapter, used as they are used: files in a folder, of which one or all are started."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import textwrap
from typing import NamedTuple

import numpy as np
import pytest

from minitransformers.reporting.run import load_section
from minitransformers.reporting.section import Section

MAIN = '''
    """Tiny, a chapter for tests."""
    from minitransformers.reporting import run_chapter

    if __name__ == "__main__":
        raise SystemExit(run_chapter(__file__, __doc__, order=["learns", "exactly"]))
'''

LEARNS = '''
    """Does it learn?

    The text of the section.
    """
    from minitransformers.reporting import Section, level, lines

    section = Section(__file__, __doc__, kind="trained")

    @section.tuning
    def tuning(rng):
        for rate in (0.1, 0.2):
            yield "ours", rate, {"loss": abs(rate - 0.2) + rng.random() / 100}

    @section.experiment
    def experiment(rng):
        print("a line of the section's own")
        for x in (1, 2):
            yield "ours", x, {"right": section.rates["ours"] * x + rng.random() / 1000}

    @section.claim("It learns", paper="p", measured=lambda found: f"{found['right']['ours'][2].mean():.1f}")
    def rule(found):
        """Twice as right
        at 2 as at 1."""
        return found["right"]["ours"][2] > BOUND * found["right"]["ours"][1]

    @section.report
    def report(found):
        section.value("ours.right", found["right"]["ours"][2].mean())
        section.values("ours.tried", {"seeds": len(found["right"]["ours"][2]), "points": 2})
        section.table("ours", ["x", "right"], [[x, float(y.mean())] for x, y in found["right"]["ours"].items()])

    @section.figure("line")
    def picture(ax, found):
        lines(ax, found["right"], xlabel="x")
        level(ax, 0.3, "guessing")

    if __name__ == "__main__":
        section.main()
'''

EXACTLY = '''
    """Is it so?"""
    from minitransformers.reporting import Section

    section = Section(__file__, __doc__, kind="exact")

    @section.experiment
    def experiment(rng):
        yield "it", 0, {"error": ERROR, "pace": 3.0}

    @section.claim("It is so", paper="p")
    def rule(found):
        """To rounding."""
        return found["error"]["it"][0] < 1e-12

    @section.claim("It is fast", paper="p", kind="timed")
    def fast(found):
        """In less than 2 units."""
        return found["pace"]["it"][0] < 2

    if __name__ == "__main__":
        section.main()
'''


@pytest.fixture
def chapter(tmp_path):
    """A folder of two sections, in a repository of its own."""
    folder = tmp_path / "chapters" / "tiny"
    folder.mkdir(parents=True)
    for name, text in (("__main__", MAIN), ("learns", LEARNS.replace("BOUND", "1.5")), ("exactly", EXACTLY.replace("ERROR", "1e-16"))):
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


class Run(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def start(monkeypatch, capsys):
    """``start(path, *options)``: what ``python path options`` does, without another process."""

    def started(path, *options) -> Run:
        file = path / "__main__.py" if path.is_dir() else path
        monkeypatch.setattr(sys, "argv", [str(file), *options])
        capsys.readouterr()
        try:
            runpy.run_path(str(file), run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code
        return Run(status, *capsys.readouterr())

    return started


def results_of(chapter):
    return json.loads((chapter.parent.parent / "docs" / "tiny" / "results" / "results.json").read_text())


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    later = path.stat().st_mtime + 2                         # as a person is slower: kept bytecode goes by whole seconds and the size
    os.utime(path, (later, later))


def test_a_full_run_writes_what_all_sections_found(chapter, start):
    run = start(chapter)
    assert run.returncode == 0, run.stderr
    results = results_of(chapter)
    verdicts = {claim["name"]: (claim["verdict"], claim["state"], claim["section"]) for claim in results["claims"]}
    assert verdicts == {
        "It learns": ("holds in 3 of 3", "holds", "learns"),
        "It is so": ("exact", "exact", "exactly"),
        "It is fast": ("does not hold on this machine", "timed", "exactly"),
    }
    assert results["claims"][0]["expect"] == "Twice as right at 2 as at 1."
    assert results["values"]["ours"]["right"] == pytest.approx(0.4, abs=1e-2)
    assert results["values"]["ours"]["tried"] == {"seeds": 3, "points": 2}
    assert results["tables"]["ours"]["section"] == "learns"
    assert results["sections"]["learns"]["title"] == "Does it learn?" and results["sections"]["learns"]["seeds"] == 3
    assert results["figures"] == ["line"]
    assert (results["chapter"], results["seed"], results["quick"]) == ("tiny", 0, False)


def test_rates_are_tuned_once_recorded_and_tuned_anew_when_asked(chapter, start):
    start(chapter)
    assert set(results_of(chapter)["sections"]["learns"]["tuned"]["ours"]) == {"0.1", "0.2"}
    edit(chapter / "learns.py", "abs(rate - 0.2)", "abs(rate - 0.1)")
    start(chapter)
    assert results_of(chapter)["tables"]["learns_rates"]["rows"][0][-1] == "0.2", "a run takes the record"
    start(chapter, "--tune")
    assert results_of(chapter)["tables"]["learns_rates"]["rows"][0][-1] == "0.1"


def test_each_contestant_may_be_tried_at_rates_of_its_own(tmp_path):
    section = Section(tmp_path / "two.py", "Two.", kind="arithmetic")

    @section.tuning
    def tuning(rng):
        for name, rates in (("slow", (0.1, 0.2)), ("fast", (0.2, 1.0))):
            for rate in rates:
                yield name, rate, {"loss": rate}

    @section.experiment
    def experiment(rng):
        yield "slow", 0, {"rate": section.rates["slow"]}

    table = section.measure(quick=True)["tables"]["two_rates"]
    assert table["columns"][1:-1] == ["0.1", "0.2", "1"]
    assert table["rows"] == [["slow", 0.1, 0.2, None, "0.1"], ["fast", None, 0.2, 1.0, "0.2"]]


def test_one_section_renews_its_own_results_and_leaves_the_others(chapter, start):
    start(chapter)
    before = results_of(chapter)
    edit(chapter / "exactly.py", '"It is so"', '"It is still so"')
    assert start(chapter / "exactly.py").returncode == 0
    after = results_of(chapter)
    assert sorted(claim["name"] for claim in after["claims"]) == ["It is fast", "It is still so", "It learns"]
    assert after["values"] == before["values"] and after["tables"] == before["tables"] and after["figures"] == before["figures"]


def test_a_whole_run_drops_what_is_gone(chapter, start):
    start(chapter)
    (chapter / "learns.py").unlink()
    edit(chapter / "__main__.py", '"learns", ', "")
    start(chapter)
    assert list(results_of(chapter)["sections"]) == ["exactly"] and results_of(chapter)["values"] == {}


def test_a_section_that_cannot_run_here_says_so_and_its_record_stays(chapter, start):
    start(chapter)
    before = results_of(chapter)
    edit(chapter / "learns.py", 'kind="trained")', 'kind="trained", needs=lambda quick: "needs the moon" if not quick else None)')
    edit(chapter / "exactly.py", '"It is so"', '"It is still so"')
    run = start(chapter)
    after = results_of(chapter)
    assert run.returncode == 0 and "Does it learn?" in run.stdout and "left out: needs the moon" in run.stdout
    assert after["sections"]["learns"] == before["sections"]["learns"] and after["tables"] == before["tables"] and after["values"] == before["values"]
    assert sorted(claim["name"] for claim in after["claims"]) == ["It is fast", "It is still so", "It learns"]
    assert "left out" not in start(chapter, "--quick").stdout
    assert start(chapter / "learns.py").returncode == 0 and results_of(chapter) == after, "alone, it writes nothing"


def test_the_same_seed_gives_the_same_bytes(chapter, start, tmp_path):
    for name in "ab":
        assert start(chapter, "--out", str(tmp_path / name)).returncode == 0
    for file in ("results.json", "line.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_what_is_not_so_by_construction_fails(chapter, start):
    edit(chapter / "exactly.py", "1e-16", "1.0")
    run = start(chapter / "exactly.py")
    assert run.returncode == 1
    assert "[fails] It is so" in run.stdout


def test_a_claim_that_does_not_hold_is_a_result_and_one_that_changed_fails(chapter, start):
    edit(chapter / "learns.py", "1.5", "3")
    run = start(chapter)
    assert run.returncode == 0, run.stderr
    assert "[does not hold: holds in 0 of 3] It learns" in run.stdout
    edit(chapter / "learns.py", "> 3", "> 1.5")
    run = start(chapter)
    assert run.returncode == 1
    assert "not as recorded: It learns: it was: does not hold: holds in 0 of 3; it is: holds in 3 of 3" in run.stdout
    assert start(chapter).returncode == 0, "it is on record now"


def test_other_seeds_have_their_word_beside_the_record_and_change_nothing_of_it(chapter, start):
    start(chapter)
    before, figure = results_of(chapter), (chapter.parent.parent / "docs" / "tiny" / "results" / "line.svg").read_bytes()
    edit(chapter / "learns.py", "1.5", "3")                  # a rule that these seeds do not keep
    run = start(chapter, "--seed", "3")
    assert run.returncode == 0 and "with these seeds: It learns: it was: holds in 3 of 3; it is: does not hold" in run.stdout
    after = results_of(chapter)
    said = {claim["name"]: claim.pop("again", None) for claim in after["claims"]}
    assert after == before and (chapter.parent.parent / "docs" / "tiny" / "results" / "line.svg").read_bytes() == figure
    assert said == {"It learns": {"seed": 3, "state": "does not hold", "verdict": "does not hold: holds in 0 of 3", "measured": "0.4"}, "It is so": None, "It is fast": None}


def test_other_seeds_have_no_word_where_nothing_is_on_record_or_they_are_the_same(chapter, start):
    run = start(chapter, "--seed", "3")
    assert run.returncode == 0 and "nothing is written: learns, exactly: not on record yet" in run.stdout
    assert not (chapter.parent.parent / "docs").exists()
    start(chapter)
    before = results_of(chapter)
    assert "seeds below 3 are those of the record" in start(chapter, "--seed", "2").stdout and results_of(chapter) == before


def test_other_seeds_word_is_dropped_with_the_experiment_that_it_is_of(chapter, start):
    start(chapter)
    start(chapter / "learns.py", "--seed", "3")
    assert start(chapter).returncode == 0
    assert "again" in results_of(chapter)["claims"][0], "the same experiment was found again"
    edit(chapter / "learns.py", "x + rng", "x + 1 + rng")
    start(chapter)
    assert "again" not in results_of(chapter)["claims"][0]


def test_a_clock_decides_no_exit_status(chapter, start):
    start(chapter)
    edit(chapter / "exactly.py", '"pace": 3.0', '"pace": 1.0')
    assert start(chapter).returncode == 0
    assert "holds on this machine" in {claim["verdict"] for claim in results_of(chapter)["claims"]}


def test_quick_writes_nothing_has_one_seed_and_judges_no_training(chapter, start):
    run = start(chapter, "--quick")
    assert run.returncode == 0, run.stderr
    assert "[not measured in quick mode] It learns" in run.stdout and "[exact] It is so" in run.stdout
    assert run.stdout.count("a line of the section's own") == 1
    assert not (chapter.parent.parent / "docs").exists()


def test_json_has_stdout_to_itself(chapter, start):
    run = start(chapter, "--quick", "--json")
    assert json.loads(run.stdout)["quick"] is True
    assert "a line of the section's own" in run.stderr


@pytest.mark.parametrize("options", [["--seed", "-1"], ["--seed", "one"], ["--seed=--"], ["--quik"], ["more"]])
def test_a_wrong_option_is_one_line(chapter, start, options):
    for path in (chapter, chapter / "exactly.py"):
        run = start(path, *options)
        assert run.returncode == 2
        assert re.fullmatch(r"minitransformers: .*\n", run.stderr)


def test_the_order_names_every_section(chapter, start):
    edit(chapter / "__main__.py", '"learns", ', "")
    with pytest.raises(ValueError, match="order has exactly; the folder exactly, learns"):
        start(chapter)


def test_ctrl_c_is_quiet(chapter):
    file = chapter / "exactly.py"
    edit(file, "    yield", "    import time; print('ready', flush=True); time.sleep(60)\n    yield")
    process = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "ready" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT)
    assert errors == ""


@pytest.mark.parametrize("file", ["", "exactly.py"])
def test_python_runs_the_folder_and_a_file_of_it(chapter, file):
    run = subprocess.run([sys.executable, str(chapter / file), "--quick"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "[exact] It is so" in run.stdout and ("Does it learn?" in run.stdout) == (not file)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_that_cannot_show_a_character_shows_another(chapter, encoding):
    file = chapter / "exactly.py"
    file.write_text(file.read_text(encoding="utf-8").replace("It is so", "It is √so"), encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    run = subprocess.run([sys.executable, str(file), "--quick"], capture_output=True, timeout=60, env=environment)
    assert run.returncode == 0, run.stderr
    assert "[exact] It is ?so" in run.stdout.decode(encoding)


def test_the_cells_run_where_argv_is_somebody_elses(chapter, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    load_section(chapter / "exactly.py").main()
    assert "[exact] It is so" in capsys.readouterr().out
    assert not (chapter.parent.parent / "docs").exists()


@pytest.fixture
def section(tmp_path):
    return Section(tmp_path / "s.py", "Title", kind="arithmetic")


def test_a_section_says_what_it_lacks(section, tmp_path):
    with pytest.raises(ValueError, match="kind: got 'true', wants one of exact, arithmetic, trained, timed"):
        Section(tmp_path / "s.py", "Title", kind="true")
    with pytest.raises(ValueError, match="has no experiment"):
        section.measure()
    with pytest.raises(ValueError, match="claim 'c': the rule has no docstring"):
        section.claim("c", paper="p")(lambda found: True)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="makes no section"):
        load_section(tmp_path / "empty.py")


def test_some_seeds_hold_and_some_do_not(section, capsys):
    @section.experiment
    def experiment(rng):
        yield "draw", 0, {"number": float(rng.random())}

    @section.claim("It is above a half", paper="p")
    def rule(found):
        """Above a half."""
        return found["number"]["draw"][0] > 0.5

    draws = [np.random.default_rng(seed).random() for seed in range(3)]
    (claim,) = section.measure()["claims"]
    assert claim["verdict"] == f"holds in {sum(draw > 0.5 for draw in draws)} of 3" and claim["state"] == "mixed"


@pytest.mark.parametrize("path", ["error", "", "a..b", ".a", "a b.c"])
def test_a_values_path_must_be_dotted(section, path):
    with pytest.raises(ValueError, match="path"):
        section.value(path, 1)


@pytest.mark.parametrize("number", [float("nan"), np.inf, object()])
def test_a_value_must_be_something_that_a_page_can_show(section, number):
    with pytest.raises(ValueError, match=r"a\.b"):
        section.value("a.b", number)


@pytest.mark.parametrize(("first", "second"), [("a.b", "a.b.c"), ("a.d.e", "a.d")])
def test_a_path_cannot_run_through_a_number(section, first, second):
    section.value(first, 1)
    with pytest.raises(ValueError, match=f"path: got .*, but {first} is a number already"):
        section.value(second, 1)


def test_a_table_needs_a_cell_for_each_column(section):
    with pytest.raises(ValueError, match="rows"):
        section.table("t", ["a", "b"], [[1]])
