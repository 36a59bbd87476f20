"""The catalogue under calls that nobody thought of: right, or refused by name."""

from itertools import islice

import numpy as np
import pytest

from minitransformers import catalogue
from minitransformers.foundation import example
from tests import fuzz


@pytest.mark.parametrize("part", range(4))
def test_no_call_ends_in_anything_but_a_right_result_or_a_refusal_by_name(part):
    found = [fuzz.outcome(*call[:3], mild=call[3]) for call in islice(fuzz.calls(np.random.default_rng(part)), 125)]
    assert [each for each in found if each.kind in fuzz.FAULTS] == []
    kinds = {each.kind for each in found}
    assert kinds - {"too large"} == {"ran", "refused by name"}, "a fuzz in which all calls fare alike tests nothing"


def faulty(change):
    """An entry whose function does something wrong."""
    return catalogue.Entry("faulty", "tests", "t", "s", change, lambda rng: example(*rng.normal(size=(2, 3))))


def writes(x, y):
    x += 1
    return x, lambda dout: (dout, dout)


def widens(x, y):
    return (x + y).astype(np.float32), lambda dout: (dout, dout)


def is_bare(x, y):
    return {}["x"]


def reshapes(x, y):
    return x + y, lambda dout: (dout[None], dout)


def is_wrong(x, y):
    return x * y, lambda dout: (dout * y, 1.01 * dout * x)


@pytest.mark.parametrize(
    ("change", "kind"),
    [(writes, "argument written to"), (widens, "dtype changed"), (is_bare, "bare exception"), (reshapes, "gradient of another shape"), (is_wrong, "gradient wrong")],
)  # fmt: skip
def test_each_fault_is_found(change, kind):
    entry = faulty(change)
    assert fuzz.outcome(entry, entry.example(np.random.default_rng(0)), "as it is", mild=True).kind == kind
