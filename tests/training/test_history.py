"""history.csv: what is written is read, and a file that is not whole is named with its line."""

import pytest

from minitransformers.training.history import Record, read_history, records_of_json, write_history

RECORDS = [Record(1, 0.1, 2.5, 1.0, 0.25, None), Record(2, 0.05, 2.25, 0.5, 0.5, {"bits": 3.5, "accuracy": 0.25}), Record(3, 0.01, 2.0, 0.5, 0.75, {"bits": 3.0})]
WHOLE = "step,learning_rate,loss,gradient_norm,seconds,bits,accuracy\n1,0.1,2.5,1.0,0.25,,\n2,0.05,2.25,0.5,0.5,3.5,0.25\n3,0.01,2.0,0.5,0.75,3.0,\n"


def test_what_is_written_is_read(tmp_path):
    write_history(tmp_path, RECORDS, {})
    assert (tmp_path / "history.csv").read_text() == WHOLE
    assert read_history(tmp_path / "history.csv") == read_history(str(tmp_path / "history.csv")) == RECORDS
    assert records_of_json([list(record) for record in RECORDS], steps=3) == RECORDS


def test_a_history_that_is_cut_off_anywhere_is_refused(tmp_path):
    path = tmp_path / "history.csv"
    ends = {len("".join(WHOLE.splitlines(keepends=True)[:n])) for n in range(1, 5)}
    for length in range(len(WHOLE)):
        path.write_text(WHOLE[:length])
        if length in ends:                                   # whole lines are a shorter history
            assert read_history(path) == RECORDS[: WHOLE[:length].count("\n") - 1]
            continue
        with pytest.raises(ValueError, match=r"history\.csv: (is cut off in line|is not a history)"):
            read_history(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a history"),
        (b"\xff\xfe\x00", "is not a history"),
        (b"a,b\n1,2\n", r"is not a history: it begins with \['a', 'b'\], wants step, learning_rate"),
        (WHOLE.replace("2.25", "two").encode(), r"line 3: got \['2', '0.05', 'two',.* wants a finite number for each of step, learning_rate"),
        (WHOLE.replace("2.25", "nan").encode(), "line 3: got"),
        (WHOLE.replace("2.25", "").encode(), "line 3: got"),
        (WHOLE.replace("3.5,", "").encode(), "line 3: got"),
        (WHOLE.replace("\n2,", "\n2.5,").encode(), "line 3: got"),
        (WHOLE.replace("3.0,\n", "3.0,,4\n").encode(), "line 4: got"),
        ((WHOLE + "\n").encode(), r"line 5: got \[\]"),
        (WHOLE.replace("2.0", '"2.0\n').encode(), "line 4: got"),
        (WHOLE.replace("2.0", "2\0").encode(), "history.csv: "),
    ],
)
def test_a_history_that_is_garbled_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "history.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_history(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_history_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.csv: cannot be read: No such file"):
        read_history(tmp_path / "gone.csv")
