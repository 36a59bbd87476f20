"""Figures, tables and progress bars, as sections show them."""

import sys
import time
import types

import numpy as np
import pytest

from minitransformers.reporting.figures import COLOURS, dots, drawing, front, lines, named_points, show_in_notebook
from minitransformers.reporting.progress import progress
from minitransformers.reporting.tables import aligned


def test_figures_carry_no_date_and_take_the_pages_colours():
    with drawing() as (_, ax, made):
        ax.plot([0, 1], [1, 0], "o-", label="$x^2$")
        ax.legend()
    svg = made[0].decode()
    assert "<text" in svg and "#000000" in svg and COLOURS[0] in svg
    assert "dc:date" not in svg and "#ffffff" not in svg


def test_a_notebook_shows_the_figure(monkeypatch):
    shown = []
    display = types.ModuleType("IPython.display")
    display.SVG, display.display = (lambda data: data), shown.append
    ipython = types.ModuleType("IPython")
    ipython.version_info = (9, 0)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py"])
    show_in_notebook(b"<svg/>")
    assert shown == [b"<svg/>"]


def test_progress_appears_after_two_seconds_only(capsys):
    for _ in progress(range(3), "quick loop"):
        pass
    assert "quick loop" not in capsys.readouterr().err
    for _ in progress(range(3), "slow loop"):
        time.sleep(0.8)
    assert "slow loop" in capsys.readouterr().err


def test_tables_line_up_with_few_digits():
    assert aligned(["name", "x"], [["a", 0.123456], ["bc", 12]]).splitlines() == ["name      x", "----  -----", "a     0.123", "bc       12"]


def test_more_lines_than_colours_are_still_told_apart():
    pytest.importorskip("matplotlib")
    with drawing() as (_, ax, _):
        lines(ax, {str(i): {1: np.array([i, i + 1]), 2: np.array([i, i])} for i in range(len(COLOURS) + 2)})
        assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ax.lines}) == len(COLOURS) + 2


def test_rows_of_dots_read_from_top_to_bottom():
    pytest.importorskip("matplotlib")
    with drawing() as (_, ax, _):
        dots(ax, {"first": np.array([1.0, 2.0]), "second": 3.0}, at=0.5, xlabel="x")
        assert [label.get_text() for label in ax.get_yticklabels()] == ["second", "first"]
        below, above, dotted = ax.lines
        assert list(above.get_xdata()) == [1, 2] and list(above.get_ydata()) == [1, 1] and list(below.get_xdata()) == [3]
        assert list(dotted.get_xdata()) == [0.5, 0.5]


def test_the_front_is_what_nothing_beats_and_its_names_come_first():
    points = {"beaten": (2.0, 1.5), "small": (1.0, 3.0), "as large and worse": (1.0, 4.0), "good": (2.0, 1.0), "large, no better": (3.0, 1.0)}
    assert front(points) == ["small", "good", "large, no better"]
    with drawing() as (_, ax, _):
        named_points(ax, {**points, "beside good": (2.01, 1.01)}, xlim=(0, 4), ylim=(0, 5))
        names = [text.get_text() for text in ax.texts]
        line = ax.lines[-1].get_xydata().tolist()
    assert names[:3] == ["small", "good", "large, no better"] and "beside good" not in names and "beaten" in names
    assert line == [[1, 3], [2, 1], [3, 1]]
