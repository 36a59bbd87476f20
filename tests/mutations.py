"""Mutants: a concept with one small mistake in it. What judges concepts must refuse every one.

Backward mutants (minitransformers.foundation.mistakes) are judged by the gradient checker in ``test_mutations.py``. A mistake
in the forward survives it wherever the backward uses the same wrong number, so forward mutants are judged by the
concept's own test file, which holds an independent oracle:

    python -m tests.mutations                       # every concept, a few minutes
    python -m tests.mutations softmax rms_norm      # these
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from minitransformers import catalogue
from minitransformers.foundation import checks
from minitransformers.foundation.mistakes import forward_mutants

TESTS = Path(__file__).parent


class _Judge:
    """A pytest plugin that collects once and then runs the tests in a fork of the process for every mutant."""

    def __init__(self, entry: catalogue.Entry) -> None:
        self.entry = entry
        self.mutants = forward_mutants(entry)
        self.healthy = False
        self.survivors: list[Mutant] = []

    def pytest_runtestloop(self, session: Any) -> bool:
        self.healthy = bool(session.items) and self._all_pass(session, contextlib.nullcontext())
        if self.healthy:
            self.survivors = [mutant for mutant in self.mutants if self._all_pass(session, mutant.alive())]
        return True

    def _all_pass(self, session: Any, state: contextlib.AbstractContextManager) -> bool:
        child = os.fork()
        if child == 0:
            failed = 1
            try:
                silence = os.open(os.devnull, os.O_WRONLY)
                os.dup2(silence, 1)
                os.dup2(silence, 2)
                with state:
                    for item, following in zip(session.items, [*session.items[1:], None], strict=True):
                        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                        if session.testsfailed:
                            break
                    else:
                        failed = not checks.rejections(self.entry).passed  # bad calls stand on the label
            finally:
                os._exit(failed)
        return os.waitpid(child, 0)[1] == 0


def tests_of(entry: catalogue.Entry) -> Path:
    """The test file of the concept's name; another form without one of its own is tested with the plain form, or with its file."""
    names = (entry.name, entry.form_of or entry.name, entry.module.rpartition(".")[2])
    files = [TESTS / entry.chapter / f"test_{name}.py" for name in names]
    return next((file for file in files if file.is_file()), files[0])


def judge_forward(entry: catalogue.Entry) -> _Judge:
    """The concept's test file, parity left out, and the bad calls on its label against every forward mutant."""
    import pytest

    judge = _Judge(entry)
    file = tests_of(entry)
    options = ["-q", "-x", "--no-header", "--capture=no", "--timeout=60", "-m", "not parity and not slow",
               "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # fmt: skip
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        pytest.main([str(file), *options], plugins=[judge])
    return judge


def main(names: list[str]) -> int:
    """Print the forward mutants that survive their concept's test file; 1 where there are any."""
    from tests.mutations_known import HARMLESS_FORWARD

    lost = 0
    for name in names or list(catalogue.concepts()):
        entry = catalogue.find(name)
        judge = judge_forward(entry)
        if not judge.healthy:
            print(f"{name}: its tests do not pass, or there are none", flush=True)
            lost += 1
            continue
        known = HARMLESS_FORWARD.get(name, {})
        unknown = [mutant for mutant in judge.survivors if mutant.change not in known]
        stale = known.keys() - {mutant.change for mutant in judge.survivors}
        lost += len(unknown) + len(stale)
        killed = len(judge.mutants) - len(judge.survivors)
        print(f"{name}: {len(judge.mutants)} mutants, {killed} refused, {len(judge.survivors) - len(unknown)} known to be harmless", flush=True)
        for mutant in unknown:
            print(f"    SURVIVES line {mutant.line}: {mutant.change}", flush=True)
        for change in sorted(stale):
            print(f"    harmless no longer, take off the table: {change}", flush=True)
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
