"""A run that is killed at any moment and resumed ends with the same bits as one that was not."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minitransformers.training.checkpoint import load_checkpoint
from minitransformers.training.loop import CHECKPOINT

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL and fork")
SCRIPT = Path(__file__).with_name("small_run.py")


@contextlib.contextmanager
def trainer():
    """Yields train(task, folder, *death, timeout=None): a process that trains, killed after the timeout; returns how it ended."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    server = subprocess.Popen([sys.executable, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)

    def train(task, folder, *death, timeout=None):
        server.stdin.write(" ".join(map(str, (task, folder, *death))) + "\n")
        server.stdin.flush()
        process = int(server.stdout.readline())
        if timeout is not None:
            time.sleep(timeout)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return int(server.stdout.readline())

    with server:
        yield train
        server.stdin.close()


@pytest.fixture(scope="module")
def train():
    with trainer() as train:
        yield train


@pytest.fixture(scope="module", params=["language", "classes"])
def uninterrupted(request, tmp_path_factory):
    """Which task it is, what it ends with, and how long it takes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with trainer() as train:  # a server of its own: another layout of memory must not change a bit either
        began = time.perf_counter()
        assert train(request.param, folder) == 0
    return request.param, load_checkpoint(folder / CHECKPOINT), time.perf_counter() - began


def assert_same_run(folder, wanted):
    found = load_checkpoint(folder / CHECKPOINT)
    assert found.arrays.keys() == wanted.arrays.keys()
    for name, array in wanted.arrays.items():
        assert found.arrays[name].tobytes() == array.tobytes(), name
    for key in ("step", "config", "random"):
        assert found.state[key] == wanted.state[key]
    without_seconds = [[record[:4] + record[5:] for record in run.state["history"]] for run in (found, wanted)]
    assert without_seconds[0] == without_seconds[1]
    assert [child.name for child in folder.iterdir() if child.name.startswith(".")] == []  # nothing half-written is left


def test_killed_at_random_moments(tmp_path, train, uninterrupted):
    task, wanted, seconds = uninterrupted
    rng, folder, resumed_from = np.random.default_rng(), tmp_path / "run", set()
    for _ in range(60):
        if train(task, folder, timeout=rng.uniform(0.1, 0.6) * seconds) == 0:
            if resumed_from:
                break
            shutil.rmtree(folder)
            seconds /= 2  # it was faster than its killer
        elif (folder / CHECKPOINT).exists():
            resumed_from.add(load_checkpoint(folder / CHECKPOINT).state["step"])  # never half a file
        else:
            seconds *= 1.3
        if len(resumed_from) == 5:
            break
    assert resumed_from and train(task, folder) == 0
    assert_same_run(folder, wanted)


@pytest.mark.parametrize(
    "death",
    [
        ("replace", "1", "before"),   # the first checkpoint is written but not in place
        ("replace", "1", "after"),    # in place, its copy for people is not
        ("replace", "6", "after"),    # between the copy of a later one and the history
        ("fsync", "3", "before"),
        ("write", "1", "before"),     # an empty file
        ("write", "30", "after"),     # somewhere within the arrays of the second checkpoint
        ("write", "36", "before"),
    ],
)  # fmt: skip
def test_killed_at_the_worst_moments_of_saving(tmp_path, train, uninterrupted, death):
    task, wanted, _ = uninterrupted
    assert train(task, tmp_path, *death) == -signal.SIGKILL
    assert train(task, tmp_path) == 0
    assert_same_run(tmp_path, wanted)
