import itertools
import math

import numpy as np
import pytest

from minitransformers.training.schedule import warmup_cosine

SETTINGS = {"peak": 3e-3, "warmup": 10, "steps": 50, "floor": 0.1}


def test_climbs_in_a_straight_line_then_falls_to_the_floor():
    rates = [warmup_cosine(step, **SETTINGS) for step in range(51)]
    np.testing.assert_allclose(rates[:11], 3e-4 * np.arange(11))
    assert rates[10] == max(rates) == 3e-3
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[30] == pytest.approx(3e-3 * (0.1 + 0.9 / 2))  # half way down
    assert rates[50] == pytest.approx(3e-4) == warmup_cosine(1000, **SETTINGS)


def test_without_warmup_the_first_update_is_nearly_the_peak():
    assert warmup_cosine(1, peak=1.0, steps=100) == pytest.approx((1 + math.cos(math.pi / 100)) / 2)


def test_nothing_but_warmup():
    assert [warmup_cosine(step, peak=1.0, steps=4, warmup=4) for step in range(1, 5)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("change", "names"), [({"warmup": 51}, "warmup"), ({"warmup": -1}, "warmup"), ({"floor": 1.5}, "floor"), ({"step": -1}, "step"), ({"peak": -1.0}, "peak")]
)
def test_impossible_settings_are_refused(change, names):
    arguments = {"step": 3, **SETTINGS, **change}
    with pytest.raises(ValueError, match=names):
        warmup_cosine(arguments.pop("step"), **arguments)


@pytest.mark.parity
def test_equals_hugging_face_where_the_floor_is_zero():
    optimization = pytest.importorskip("transformers.optimization")
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
    schedule = optimization.get_cosine_schedule_with_warmup(optimizer, 10, 50)
    theirs = []
    for _ in range(51):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose([warmup_cosine(step, **{**SETTINGS, "floor": 0.0}) for step in range(51)], theirs, atol=1e-18)
