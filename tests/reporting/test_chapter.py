"""What chapter scripts report through, used as they use it: in a script that is started."""

import json
import re
import signal
import subprocess
import sys
import textwrap
import time
import types

import numpy as np
import pytest

from minitransformers.reporting.chapter import Chapter
from minitransformers.reporting.figures import COLOURS, drawing, lines
from minitransformers.reporting.tables import aligned

SCRIPT = '''
    """Tiny, a chapter for tests."""
    # %%
    import numpy as np
    from minitransformers.reporting.chapter import Chapter

    chapter = Chapter("tiny", __doc__)
    # %%
    print("a line of the script's own")
    chapter.value("rope.error", chapter.rng().random())
    chapter.value("rope.size", np.int64(12))
    chapter.table("speed", ["norm", "time", "size"], [["rms_norm", 0.123456, 12345], ["none", np.float32(0.5), 7]])
    with chapter.figure("line") as (fig, ax):
        ax.plot([0, 1], [1, 0], "o-", label="$x^2$")
        ax.legend()
    chapter.claim("it is so", paper="p", expect="e", measured="m", holds=np.True_)
    chapter.claim("small", paper="p", expect="e", measured="m", holds=False, toy_scale="too few words")
    chapter.claim("long", paper="p", expect="e", measured="m", holds=LONG, full_only=True)
    chapter.finish()
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "chapters" / "tiny.py"
    path.parent.mkdir()
    path.write_text(textwrap.dedent(SCRIPT).replace("LONG", "True"))
    return path


def start(script, *options):
    return subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, timeout=60)


@pytest.fixture
def chapter(capsys):
    return Chapter("tiny", "Tiny.", argv=["--quick"])


def test_a_full_run_writes_the_chapters_results(script):
    run = start(script)
    assert run.returncode == 0, run.stderr
    folder = script.parent.parent / "docs" / "tiny" / "results"
    assert sorted(path.name for path in folder.iterdir()) == ["line.svg", "results.json"]
    results = json.loads((folder / "results.json").read_text())
    assert results["values"]["rope"] == {"error": round(np.random.default_rng(0).random(), 6), "size": 12}
    assert results["tables"]["speed"]["rows"][0] == ["rms_norm", 0.123456, 12345]
    assert [claim["verdict"] for claim in results["claims"]] == ["holds", "does not hold at this scale", "holds"]
    assert results["figures"] == ["line"]
    assert (results["chapter"], results["seed"], results["quick"]) == ("tiny", 0, False)
    assert set(results["environment"]) == {"python", "numpy", "minitransformers"}
    assert "too few words" in run.stdout


def test_the_same_seed_gives_the_same_bytes(script):
    first, second = (start(script, "--out", str(script.parent / name)) for name in ("a", "b"))
    assert first.returncode == second.returncode == 0
    for name in ("results.json", "line.svg"):
        assert (script.parent / "a" / name).read_bytes() == (script.parent / "b" / name).read_bytes()


def test_another_seed_gives_other_numbers(script):
    zero, one = (json.loads(start(script, "--quick", "--json", "--seed", seed).stdout) for seed in "01")
    assert zero["values"]["rope"]["error"] != one["values"]["rope"]["error"]


def test_figures_carry_no_date_and_take_the_pages_colours(script):
    start(script, "--out", str(script.parent))
    svg = (script.parent / "line.svg").read_text()
    assert "<text" in svg and "#000000" in svg and COLOURS[0] in svg
    assert "dc:date" not in svg and "#ffffff" not in svg


def test_quick_writes_nothing_and_judges_no_claim_that_needs_a_full_run(script):
    script.write_text(script.read_text().replace("holds=True", "holds=False"))
    run = start(script, "--quick")
    assert run.returncode == 0, run.stderr
    assert "not measured in quick mode" in run.stdout
    assert not (script.parent.parent / "docs").exists()


def test_json_has_stdout_to_itself(script):
    run = start(script, "--quick", "--json")
    assert json.loads(run.stdout)["quick"] is True
    assert "a line of the script's own" in run.stderr


def test_a_claim_that_fails_makes_the_script_fail(script):
    script.write_text(script.read_text().replace("holds=True", "holds=False"))
    run = start(script)
    assert run.returncode == 1
    assert "[fails] long" in run.stdout
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("options", [["--seed", "-1"], ["--seed", "one"], ["--seed=--"], ["--quik"]])
def test_a_wrong_option_is_one_line(script, options):
    run = start(script, *options)
    assert run.returncode == 2
    assert re.fullmatch(r"minitransformers: .*\n", run.stderr)


def test_the_cells_run_where_argv_is_somebody_elses(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    chapter = Chapter("tiny", "Tiny.")
    chapter.claim("no", paper="p", expect="e", measured="m", holds=False)
    assert (chapter.quick, chapter.seed, chapter.out) == (False, 0, None)
    assert chapter.finish() == 1


def test_ctrl_c_is_quiet(script):
    script.write_text(script.read_text().replace("# %%\nprint", "import time; print('ready', flush=True); time.sleep(60)\nprint"))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "ready" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert errors == ""


def test_progress_appears_after_two_seconds_only(chapter, capsys):
    for _ in chapter.progress(range(3), "quick loop"):
        pass
    assert "quick loop" not in capsys.readouterr().err
    for _ in chapter.progress(range(3), "slow loop"):
        time.sleep(0.8)
    assert "slow loop" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["error", "", "a..b", ".a", "a b.c"])
def test_a_values_path_must_be_dotted(chapter, path):
    with pytest.raises(ValueError, match="path"):
        chapter.value(path, 1)


@pytest.mark.parametrize("number", [float("nan"), np.inf, object()])
def test_a_value_must_be_something_that_a_page_can_show(chapter, number):
    with pytest.raises(ValueError, match=r"a\.b"):
        chapter.value("a.b", number)


def test_a_path_cannot_run_through_a_number(chapter):
    chapter.value("a.b", 1)
    with pytest.raises(ValueError, match="number already"):
        chapter.value("a.b.c", 1)
    chapter.value("a.d.e", 1)
    with pytest.raises(ValueError, match="other values"):
        chapter.value("a.d", 1)


def test_a_table_needs_a_cell_for_each_column(chapter):
    with pytest.raises(ValueError, match="rows"):
        chapter.table("t", ["a", "b"], [[1]])


def test_tables_line_up_with_few_digits():
    assert aligned(["name", "x"], [["a", 0.123456], ["bc", 12]]).splitlines() == ["name      x", "----  -----", "a     0.123", "bc       12"]


def test_a_notebook_shows_the_figure(monkeypatch, capsys):
    shown = []
    display = types.ModuleType("IPython.display")
    display.SVG, display.display = (lambda data: data), shown.append
    ipython = types.ModuleType("IPython")
    ipython.version_info = (9, 0)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py"])
    with Chapter("tiny", "Tiny.").figure("line") as (_, ax):
        ax.plot([0, 1])
    assert len(shown) == 1 and b"<svg" in shown[0]


def test_more_lines_than_colours_are_still_told_apart():
    pytest.importorskip("matplotlib")
    with drawing() as (_, ax, _):
        lines(ax, {str(i): {1: np.array([i, i + 1]), 2: np.array([i, i])} for i in range(len(COLOURS) + 2)})
        assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ax.lines}) == len(COLOURS) + 2
