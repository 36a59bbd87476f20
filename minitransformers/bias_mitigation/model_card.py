"""A model card: what was built, for what, from what, and how it does for each group, written from a recorded run.

Nothing is typed a second time: every number comes from the record, and what the record lacks is an error or stands as "not provided".
The same record gives the same bytes. A metric without the number of rows behind it and an interval around it is refused.

Source: Mitchell et al. 2019, arXiv:1810.03993, whose nine sections these are. Differs: texts that nobody has written are said to be
missing. Costs a pass over the record.

    needed: what a run must have; the first that is missing is named   (1)
    metric row = name, group, value, low to high, rows, all of them needed and low at most high   (2)
    number = the shortest text that reads back as the same number   (3)
    card = the nine sections, in their order                 (4)
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from minitransformers.foundation import bad, example, invalid, procedure

ABSENT = "not provided"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_METRIC = ("name", "group", "value", "low", "high", "rows")


def field(record: dict, name: str, kind: type | tuple[type, ...], *, argument: str = "run") -> Any:
    """What a record has under that name. Raises ValueError that names it where it is missing, empty, or of another kind."""
    value = record.get(name)
    if value is None or (isinstance(value, (str, list, tuple, dict)) and not value):
        raise invalid(f"{argument}.{name}", got="nothing", wants="this field: it is required")
    if not isinstance(value, kind) or isinstance(value, bool):
        wants = " or ".join(own.__name__ for own in (kind if isinstance(kind, tuple) else (kind,)))
        raise invalid(f"{argument}.{name}", got=type(value).__name__, wants=wants)
    return value                                             # (1)


def shown(value: Any) -> str:
    """A value as it stands in a table of Markdown. Raises ValueError for a number that is not finite."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise invalid("run", got=value, wants="finite numbers")
        return repr(float(value))                            # (3)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown(value[key])}" for key in sorted(value))
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown, value))
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(map(shown, line)) + " |" for line in lines]


def checksum(run: dict, name: str) -> str:
    """The sha256 of that name, 64 digits."""
    found = field(run, name, str)
    if not _SHA256.fullmatch(found):
        raise invalid(f"run.{name}", got=repr(found), wants="a sha256: 64 digits in lower-case hexadecimal")
    return found


def row_counts(run: dict, name: str) -> dict:
    """Rows of each group, at least two groups of at least 0 rows."""
    found = field(run, name, dict)
    if len(found) < 2 or not all(type(count) is int and count >= 0 for count in found.values()):
        raise invalid(f"run.{name}", got=shown(found), wants="a whole number of rows for each of at least 2 groups")
    return found


def _metrics(run: dict) -> list[list[Any]]:
    rows = []
    for i, metric in enumerate(field(run, "metrics", (list, tuple))):
        place = f"run.metrics.{i}"
        if not isinstance(metric, dict):
            raise invalid(place, got=type(metric).__name__, wants=f"a table with {', '.join(_METRIC)}")
        kinds: tuple = (str, str, (int, float), (int, float), (int, float), int)
        own = [field(metric, name, kind, argument=place) for name, kind in zip(_METRIC, kinds, strict=True)]
        if not (own[3] <= own[4] and own[5] >= 1):
            raise invalid(place, got=f"low {own[3]}, high {own[4]}, rows {own[5]}", wants="low at most high, and at least 1 row")
        rows.append([*own[:3], f"{shown(own[3])} to {shown(own[4])}", own[5]])  # (2)
    return rows


def _run(**changes: Any) -> dict:
    metric = {"name": "accuracy", "group": "<g1>", "value": 0.8, "low": 0.75, "high": 0.85, "rows": 120}
    run = {
        "name": "toy", "code_version": "0.1.0", "config": {"d_model": 8}, "seed": 0, "data_sha256": 64 * "a", "training_rows": {"<g1>": 300, "<g2>": 280},
        "evaluation_rows": {"<g1>": 120, "<g2>": 110}, "metrics": [metric, {**metric, "group": "<g2>", "rows": 110}], "mitigation": ["none"],
        "environment": {"numpy": "2.0"}, "intended_use": "a demonstration",
    }  # fmt: skip
    return {**run, **changes}


def _spoiled(**changes: Any) -> dict:
    return _run(metrics=[{**_run()["metrics"][0], **changes}])


@procedure(
    title="Model card",
    source="Mitchell et al. 2019, arXiv:1810.03993",
    example=lambda rng: example(_run()),
    rejects=[
        *(bad(f"run.{name}", run=_run(**{name: None})) for name in _run() if name != "intended_use"),
        *(bad(f"run.metrics.0.{name}", run=_spoiled(**{name: None})) for name in _METRIC), bad("run.metrics.0", run=_spoiled(low=0.9)),
        bad("run.data_sha256", run=_run(data_sha256="abc")), bad("run.training_rows", run=_run(training_rows={"<g1>": 3})), bad("run", run=_spoiled(value=math.nan)),
        bad("run.caveat", run=_run(caveat="none")), bad("run.seed", run=_run(seed="0")), bad("run.metrics.0", run=_run(metrics=["accuracy"])), bad(run=[1]),
    ],
)  # fmt: skip
def model_card(run: dict) -> str:
    """The card as Markdown.

    run needs name, code_version (texts), config, environment (tables), seed, data_sha256, training_rows and evaluation_rows (rows of
    each group), mitigation (the steps taken, or ["none"]), and metrics: a list of tables with name, group, value, low, high (an
    interval, and the caller's own), rows. Free texts may be left out: intended_use, factors, ethical_considerations, caveats.
    Raises ValueError, naming it, for a field that is missing or empty, is unknown, or does not fit; and for numbers that are not finite.
    """
    needed: dict[str, Any] = {"name": str, "code_version": str, "config": dict, "environment": dict, "seed": int, "mitigation": (list, tuple)}
    texts = ("intended_use", "factors", "ethical_considerations", "caveats")
    known = {*needed, *texts, "data_sha256", "training_rows", "evaluation_rows", "metrics"}
    if unknown := sorted(set(run) - known):
        raise invalid(f"run.{unknown[0]}", got="a field of that name", wants=f"fields among {', '.join(sorted(known))}")
    got = {name: field(run, name, kind) for name, kind in needed.items()}
    rows = {name: row_counts(run, name) for name in ("training_rows", "evaluation_rows")}
    sha, metrics = checksum(run, "data_sha256"), _metrics(run)
    free = {name: shown(run.get(name) or ABSENT) for name in texts}
    details = [["code version", got["code_version"]], ["seed", got["seed"]], ["configuration", got["config"]], ["environment", got["environment"]]]
    names = sorted({row[0] for row in metrics})
    sections: list[tuple[str, list[str]]] = [
        ("Model details", [*table(["what", "value"], details), "", f"Steps taken against bias: {shown(got['mitigation'])}."]),
        ("Intended use", [free["intended_use"]]),
        ("Factors", [f"Groups: {shown(sorted({row[1] for row in metrics}))}.", "", free["factors"]]),
        ("Metrics", [f"{shown(names)}. Intervals and sample sizes stand beside each value."]),
        ("Evaluation data", table(["group", "rows"], sorted(rows["evaluation_rows"].items()))),
        ("Training data", [f"sha256 {sha}", "", *table(["group", "rows"], sorted(rows["training_rows"].items()))]),
        ("Quantitative analyses", table(["metric", "group", "value", "interval", "rows"], sorted(metrics, key=lambda row: (row[0], row[1])))),
        ("Ethical considerations", [free["ethical_considerations"]]),
        ("Caveats and recommendations", [free["caveats"]]),
    ]
    return document(f"Model card: {shown(got['name'])}", sections)


def document(title: str, sections: Iterable[tuple[str, list[str]]]) -> str:
    """A page of Markdown, a heading for each section."""
    parts = [f"# {title}", *("\n".join([f"## {head}", "", *lines]) for head, lines in sections)]  # (4)
    return "\n\n".join(parts) + "\n"
