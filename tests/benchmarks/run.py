"""Ratios of run times: this package against what the field uses, on this machine.

    python -m tests.benchmarks.run                       every case
    python -m tests.benchmarks.run training_step decode  some
    python -m tests.benchmarks.run --rounds 15 --json

Both sides of a case run in worker processes of their own, as a user would run them, each with two threads unless the
case says how many. They take turns in random order, a slice at a time, after a pause and an untimed call; the figure is
the median of the ratios of neighbouring slices, with the quartiles beside it. A slice is as many calls as fill about a
third of a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time

from tests.benchmarks.cases import CASES

SLICE_SECONDS = 0.3
PAUSE_SECONDS = 0.1  # an idle BLAS thread spins for a while before it sleeps: it shall not be on the other side's core


def worker(case: str, side: str) -> None:
    """Serve slices: reads a number of calls a line, answers with the seconds that they took."""
    call = CASES[case][side]()
    call()
    print("ready", flush=True)
    for line in sys.stdin:
        time.sleep(PAUSE_SECONDS)
        call()
        start = time.perf_counter()
        for _ in range(int(line)):
            call()
        print(time.perf_counter() - start, flush=True)


class Side:
    """One worker process."""

    def __init__(self, case: str, side: str) -> None:
        count = str(CASES[case].get("threads", 2))
        threads = {name: count for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [sys.executable, "-m", "tests.benchmarks.run", "--worker", case, side]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads}
        )
        if self._answer() != "ready":
            raise SystemExit(f"{case}: the {side} side did not start")
        self.calls = max(1, round(SLICE_SECONDS / max(self.seconds(1), 1e-5)))

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def seconds(self, calls: int) -> float:
        """Seconds a call takes, over a slice of that many."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        return float(self._answer()) / calls

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(case: str, rounds: int, order: random.Random) -> dict[str, float]:
    """The ratio ours / theirs: quartiles over the rounds, and the median seconds of ours."""
    sides = {side: Side(case, side) for side in ("ours", "theirs")}
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for side in order.sample(sorted(sides), 2):
            seconds[side].append(sides[side].seconds(sides[side].calls))
    for side in sides.values():
        side.close()
    low, middle, high = statistics.quantiles([a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)], n=4)
    return {"ratio": middle, "low": low, "high": high, "milliseconds": 1e3 * statistics.median(seconds["ours"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return
    unknown = [case for case in options.cases if case not in CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; the cases are {', '.join(CASES)}")
    results = {}
    for case in options.cases or CASES:
        results[case] = found = measure(case, options.rounds, random.Random(0))
        if not options.json:
            print(
                f"{case:<18} {found['ratio']:6.2f}   quartiles {found['low']:.2f} to {found['high']:.2f}"
                f"   ({found['milliseconds']:.2f} ms)   {CASES[case]['what']}",
                flush=True,
            )
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
