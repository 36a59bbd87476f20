"""What all tests share."""

import json
import os
import signal
from pathlib import Path

# The arrays here are small and the workers share the cores: one thread each is faster, and sums come in the same order.
# It must be said before NumPy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest


def pytest_configure():
    """In the background Ctrl-C is ignored, and so it would be by what tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--record-parity",
        type=Path,
        metavar="FILE",
        help="write how close the parity tests came into FILE (docs/checks.json is what the site shows); not with xdist",
    )


_parity: dict[str, float] = {}


@pytest.fixture(autouse=True)
def _measure_parity(request, monkeypatch):
    """In a parity test, note the largest difference that assert_allclose meets, relative to the largest number (or 1).

    Comparisons with a tolerance above 1e-9 are left out: there the other side computes in float32.
    """
    if request.node.get_closest_marker("parity") is None:
        return
    name = request.node.path.stem.removeprefix("test_")
    compare = np.testing.assert_allclose

    def measuring(actual, desired, *args, **settings):
        compare(actual, desired, *args, **settings)
        if not args and max(settings.get("rtol", 0.0), settings.get("atol", 0.0)) <= 1e-9:
            actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
            differ = actual != desired                       # two equal infinities do not, and cannot be subtracted
            size = max(1.0, float(np.max(np.abs(desired), initial=0, where=np.isfinite(desired))))
            apart = np.abs(np.subtract(actual, desired, where=differ, out=np.zeros(differ.shape)))
            _parity[name] = max(_parity.get(name, 0.0), float(np.max(apart, initial=0)) / size)

    monkeypatch.setattr(np.testing, "assert_allclose", measuring)


def pytest_sessionfinish(session):
    path = session.config.getoption("--record-parity")
    if path is not None:
        known = json.loads(path.read_text()) if path.exists() else {}
        for name, error in _parity.items():
            if name in known:
                known[name]["parity"] = float(f"{error:.1e}")
        path.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def pytest_terminal_summary(terminalreporter, config):
    if _parity and config.getoption("--record-parity") is not None:
        terminalreporter.section("parity: largest difference, relative")
        for name, error in sorted(_parity.items()):
            terminalreporter.line(f"{name:<32} {error:.1e}")
