"""minitransformers exercise: a file with a blank, and what is said of what was written into it."""

import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder, run, body):
    """The exercise on rms_norm with this backward."""
    assert run("exercise", "rms_norm").status == 0
    path = folder / "exercise_rms_norm.py"
    text = path.read_text()
    start = text.index("        # To return")
    path.write_text(text[:start] + body + "\n    return out, backward\n")
    return path


RIGHT = """\
        dunit = (params.gain + offset) * dout
        shared = np.mean(dunit * unit, axis=-1, keepdims=True)
        return RmsNorm(np.sum(dout * unit, axis=(0, 1))), (dunit - unit * shared) / rms
"""


def test_a_blank_is_written_and_not_written_yet(folder, run):
    found = run("exercise", "rms_norm")
    assert found.status == 0 and "exercise --check exercise_rms_norm.py" in found.out
    found = run("exercise", "--check", "exercise_rms_norm.py")
    assert found.status == 1 and "not written yet" in found.out


def test_what_is_right_is_said_to_be(folder, run):
    found = run("exercise", "--check", written(folder, run, RIGHT))
    assert found.status == 0 and found.out.startswith("rms_norm: right")


def test_what_is_wrong_is_placed_and_explained(folder, run):
    found = run("exercise", "--check", written(folder, run, RIGHT.replace("dunit - unit", "dunit + unit")))
    assert found.status == 1 and "gradient of x[" in found.out and "equation (6)" in found.out


def test_nothing_is_overwritten(folder, run, refuses):
    run("exercise", "rms_norm")
    assert "is there already" in refuses("exercise", "rms_norm")
    assert run("exercise", "rms_norm", "--out", "another.py").status == 0 and (folder / "another.py").is_file()


def test_bad_calls_are_one_line(folder, refuses):
    assert "did you mean" in refuses("exercise", "rms_nrm")
    assert "no backward to write" in refuses("exercise", "magnitude_mask")
    assert "name of a concept, or --check" in refuses("exercise")
    assert "name of a concept, or --check" in refuses("exercise", "rms_norm", "--check", "x.py")
    assert "--out" in refuses("exercise", "--check", "x.py", "--out", "y.py")
    assert "no such file" in refuses("exercise", "--check", "x.py")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f(:\n", "broken.py:1: invalid syntax"),
        ("x = 1\ny = z\n", "broken.py:2: NameError"),
        ("x = 1\n", "has no EXERCISE"),
        ('EXERCISE = "rms_norm"\n', "has no function rms_norm"),
        ('EXERCISE = "rms_nrm"\n', "did you mean"),
    ],
)
def test_a_file_that_is_no_exercise_is_refused_in_one_line(folder, refuses, text, says):
    (folder / "broken.py").write_text(text)
    assert says in refuses("exercise", "--check", "broken.py")
