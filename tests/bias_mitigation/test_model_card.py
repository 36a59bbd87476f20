"""The model card: the record and nothing else, the same bytes each time, and no number without its interval."""

import json

import numpy as np
import pytest

from minitransformers.bias_mitigation.model_card import ABSENT, model_card

METRICS = [
    {"name": "accuracy", "group": g, "value": v, "low": v - 0.05, "high": v + 0.05, "rows": n} for g, v, n in (("<g1>", 0.81, 120), ("<g2>", 0.73, 95))
]
RUN = {
    "name": "toy | two", "code_version": "0.1.0", "config": {"rate": 0.1, "d_model": 8}, "seed": 0, "data_sha256": "0" * 64, "training_rows": {"<g1>": 300, "<g2>": 280},
    "evaluation_rows": {"<g1>": 120, "<g2>": 95}, "metrics": METRICS, "mitigation": ["reweighting"], "environment": {"numpy": "2.0", "threads": 1},
}  # fmt: skip
REQUIRED = list(RUN)


def test_the_nine_sections_stand_in_their_order():
    heads = [line[3:] for line in model_card(RUN).splitlines() if line.startswith("## ")]
    assert heads == [
        "Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data", "Quantitative analyses", "Ethical considerations",
        "Caveats and recommendations",
    ]  # fmt: skip


def test_the_same_record_gives_the_same_bytes_in_whatever_order_it_lies():
    shuffled = {key: RUN[key] for key in reversed(RUN)}
    shuffled["config"] = {"d_model": 8, "rate": 0.1}
    shuffled["metrics"] = METRICS[::-1]
    assert model_card(RUN) == model_card(RUN) == model_card(shuffled) == model_card(json.loads(json.dumps(RUN)))


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("how", ["left out", "empty"])
def test_a_field_that_is_missing_is_named(name, how):
    run = {key: value for key, value in RUN.items() if key != name} if how == "left out" else {**RUN, name: type(RUN[name])() if name != "seed" else None}
    with pytest.raises(ValueError, match=rf"run\.{name}: got nothing, wants this field"):
        model_card(run)


@pytest.mark.parametrize("name", METRICS[0])
def test_a_metric_without_one_of_its_six_parts_is_refused(name):
    bare = {key: value for key, value in METRICS[1].items() if key != name}
    with pytest.raises(ValueError, match=rf"run\.metrics\.1\.{name}: got nothing"):
        model_card({**RUN, "metrics": [METRICS[0], bare]})


def test_every_number_of_the_record_is_on_the_card_and_reads_back():
    run = {**RUN, "metrics": [{**METRICS[0], "value": 1 / 3, "low": 0.1 + 0.2, "high": 1e-7 + 0.9}, METRICS[1]]}
    line = next(line for line in model_card(run).splitlines() if line.startswith("| accuracy | &lt;g1>"))
    value, interval, rows = (cell.strip() for cell in line.strip("|").split("|")[2:])
    low, high = interval.split(" to ")
    assert (float(value), float(low), float(high), int(rows)) == (1 / 3, 0.1 + 0.2, 1e-7 + 0.9, 120)


def test_another_value_gives_another_card():
    assert model_card({**RUN, "metrics": [{**METRICS[0], "value": np.nextafter(0.81, 1)}, METRICS[1]]}) != model_card(RUN)
    assert model_card({**RUN, "seed": 1}) != model_card(RUN)


def test_six_digits_would_not_tell():
    """The negative control: rounded, two records that differ give one card."""
    assert f"{0.81:.6g}" == f"{np.nextafter(0.81, 1):.6g}"


def test_a_text_that_nobody_wrote_is_said_to_be_missing():
    assert model_card(RUN).count(ABSENT) == 4
    card = model_card({**RUN, "intended_use": "a demonstration", "caveats": "two lines\nof text"})
    assert card.count(ABSENT) == 2 and "two lines of text" in card


def test_cells_and_placeholders_survive_markdown():
    card = model_card(RUN)
    assert card.startswith("# Model card: toy \\| two\n") and "<g1>" not in card and "&lt;g1>" in card


def test_what_it_does_not_know_is_refused_and_not_lost():
    with pytest.raises(ValueError, match=r"run\.caveat: got a field of that name"):
        model_card({**RUN, "caveat": "a slip"})


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"low": 0.9, "high": 0.8}, "run.metrics.0"), ({"rows": 0}, "run.metrics.0"), ({"value": float("nan")}, "finite"), ({"low": -np.inf}, "finite"), ({"high": np.inf}, "finite"), ({"rows": "120"}, "run.metrics.0.rows"),
        ({"value": True}, "run.metrics.0.value"),
    ],
)  # fmt: skip
def test_a_metric_that_cannot_be_is_refused(changes, names):
    with pytest.raises(ValueError, match=names):
        model_card({**RUN, "metrics": [{**METRICS[0], **changes}]})


def test_one_group_is_no_disaggregation():
    with pytest.raises(ValueError, match=r"run\.training_rows"):
        model_card({**RUN, "training_rows": {"<g1>": 3}})


def test_the_whole_card_letter_by_letter():
    rows = {"<g2>": 95, "<g1>": 120}
    gaps = [{**METRICS[1], "name": "<gap>", "value": 0.5, "low": 0.25, "high": 0.75}]
    run = {**RUN, "config": {"rate": "<r>", "d_model": 8}, "training_rows": rows, "evaluation_rows": rows, "mitigation": ["<step1>", "two"], "factors": "<x>"}
    metrics = [*gaps, {**METRICS[1], "value": 0.5, "low": 0.25, "high": 1}, {**METRICS[0], "value": 0.5, "low": 0, "high": 0.75}]
    assert model_card({**run, "metrics": metrics}) == f"""\
# Model card: toy \\| two

## Model details

| what | value |
| --- | --- |
| code version | 0.1.0 |
| seed | 0 |
| configuration | d_model: 8, rate: &lt;r> |
| environment | numpy: 2.0, threads: 1 |

Steps taken against bias: &lt;step1>, two.

## Intended use

not provided

## Factors

Groups: &lt;g1>, &lt;g2>.

&lt;x>

## Metrics

&lt;gap>, accuracy. Intervals and sample sizes stand beside each value.

## Evaluation data

| group | rows |
| --- | --- |
| &lt;g1> | 120 |
| &lt;g2> | 95 |

## Training data

sha256 {64 * "0"}

| group | rows |
| --- | --- |
| &lt;g1> | 120 |
| &lt;g2> | 95 |

## Quantitative analyses

| metric | group | value | interval | rows |
| --- | --- | --- | --- | --- |
| &lt;gap> | &lt;g2> | 0.5 | 0.25 to 0.75 | 95 |
| accuracy | &lt;g1> | 0.5 | 0 to 0.75 | 120 |
| accuracy | &lt;g2> | 0.5 | 0.25 to 1 | 95 |

## Ethical considerations

not provided

## Caveats and recommendations

not provided
"""


def test_rows_of_one_metric_and_group_stay_in_the_order_of_the_record():
    twice = [{**METRICS[0], "rows": n} for n in (9, 3)]
    card = model_card({**RUN, "metrics": twice})
    assert card.index("| 9 |") < card.index("| 3 |")
