"""Files that are the old or the new one whoever else writes, and folders that one writer has at a time."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from minitransformers.foundation import atomic
from minitransformers.foundation.atomic import sole_writer, write_atomically

needs_locks = pytest.mark.skipif(atomic.fcntl is None, reason="this system has no locks on folders")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writers_of_one_file_do_not_meet(tmp_path):
    """Whoever reads meanwhile finds a whole file, no write fails, and nothing is left."""
    path, failed = tmp_path / "a.bin", []
    write_atomically(path, [b"a" * 40_000])

    def write(letter):
        try:
            for _ in range(100):
                write_atomically(path, [letter * 10_000] * 4, durable=False)
        except Exception as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        content = path.read_bytes()
        assert len(content) == 40_000 and len(set(content)) == 1
    assert failed == [] and names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_has_the_mode_that_open_gives(tmp_path, durable):
    (tmp_path / "wanted").write_bytes(b"")
    write_atomically(tmp_path / "found", [b""], durable=durable)
    assert (tmp_path / "found").stat().st_mode == (tmp_path / "wanted").stat().st_mode


def test_a_disk_that_is_full_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, [b"old"])

    def full():
        yield b"new"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device.*a\.bin'$") as caught:
        write_atomically(path, full())
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "a.bin", ((tmp_path / "source").read_bytes() for _ in range(1)))
    assert caught.value.filename == str(tmp_path / "source")


@pytest.mark.parametrize("place", ["gone/a.bin", "taken"])
def test_what_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / place, [b"new"])
    assert caught.value.filename == str(tmp_path / place) and ".partial" not in str(caught.value)
    assert names(tmp_path) == ["taken"]


@needs_locks
def test_a_folder_has_one_writer_at_a_time_and_no_lock_to_be_seen(tmp_path):
    with sole_writer(tmp_path):
        assert names(tmp_path) == []
        with pytest.raises(BlockingIOError), sole_writer(tmp_path):
            pass
    with sole_writer(tmp_path):                              # it was given back
        pass
    with pytest.raises(ZeroDivisionError), sole_writer(tmp_path):
        raise ZeroDivisionError
    with sole_writer(tmp_path):
        pass


@needs_locks
def test_a_killed_writer_holds_nothing_and_what_it_left_is_cleared_away(tmp_path):
    program = (
        "import sys, time; from minitransformers.foundation.atomic import sole_writer, write_atomically\n"
        "def parts():\n  yield b'half'\n  print('here', flush=True)\n  time.sleep(60)\n"
        "with sole_writer(sys.argv[1]): write_atomically(sys.argv[1] + '/a.bin', parts())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "here\n"
        with pytest.raises(BlockingIOError), sole_writer(tmp_path):
            pass
        (left,) = names(tmp_path)                            # and the one who was refused cleared nothing away
        process.send_signal(signal.SIGKILL)
    assert left.startswith(".a.bin.") and left.endswith(".partial") and names(tmp_path) == [left]
    (tmp_path / "notes.partial").touch()
    (tmp_path / ".hidden").touch()
    with sole_writer(tmp_path):
        assert names(tmp_path) == [".hidden", "notes.partial"]


def test_without_locks_only_what_is_old_is_cleared_away(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "fcntl", None)
    for name, seconds in ((".old.partial", 1e9), (".new.partial", None)):
        (tmp_path / name).touch()
        if seconds is not None:
            os.utime(tmp_path / name, (seconds, seconds))
    with sole_writer(tmp_path), sole_writer(tmp_path):
        assert names(tmp_path) == [".new.partial"]
