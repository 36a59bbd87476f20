import os
import subprocess
import sys

import pytest

from minitransformers.training import memory

PROBE = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from minitransformers.training.memory import keep_freed_memory
    assert keep_freed_memory() and keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults()
    for _ in range(20):
        arrays = [np.ones(size, np.float32) for size in (100_000, 1_000_000, 10_000_000)]  # the last is above 32 MB
        del arrays
print(faults() - before)
"""


@pytest.mark.skipif("glibc" not in memory._c_library(), reason="needs glibc")
def test_arrays_of_a_step_find_the_pages_of_the_step_before():
    def faults(mode):
        environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
        return int(subprocess.run([sys.executable, "-c", PROBE, mode], check=True, capture_output=True, env=environment).stdout)

    assert faults("keep") < faults("plain") / 20


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(memory, "_c_library", lambda: "")
    assert memory.keep_freed_memory.__wrapped__() is False
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.keep_freed_memory.__wrapped__() is False
