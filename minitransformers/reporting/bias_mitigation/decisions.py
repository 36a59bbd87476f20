"""Two public tables about people, of which much is known that a decision should not depend on: Adult and COMPAS.

Adult (Kohavi 1996): who earns more than 50,000 dollars, by the census of 1994. COMPAS (Angwin et al. 2016, ProPublica): whom a score of risk
called likely to be charged again, and who was, within two years. Both say what was recorded, by whom and for what; neither is what is true
of people. They are read where they lie, never kept here: ``minitransformers weights`` says how to obtain them.
"""

from __future__ import annotations

import csv
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.models.published import published_file

NUMBERS = ("age", "education years", "capital gain", "capital loss", "hours a week")
_COLUMNS = (
    "age", "work", "weight", "education", "education years", "marriage", "occupation", "relationship", "race", "sex",
    "capital gain", "capital loss", "hours a week", "country", "income",
)  # fmt: skip
_LEFT_OUT = ("weight", "sex", "income")


class Table(NamedTuple):
    """features (people, columns) in float32, labels of 0 and 1, and the group of each, by number."""

    features: Array
    labels: Array
    groups: Array


def load_adult() -> tuple[Table, Table]:
    """To learn from, and to be tested on. Group 0 is female, 1 male: the census has no other; the column itself is not among the features.

    Five columns are numbers, gains and losses by their logarithm, standardised by those to learn from; the others are one column of 0 and 1
    for each value that those to learn from have. The relationship to the household's head stays, and with it what tells the sex.
    """
    known, asked = (_rows(published_file("fairness", f"adult_{part}").read_text(encoding="utf-8")) for part in ("train", "test"))
    numbers = [_numbers(rows) for rows in (known, asked)]
    middle, spread = numbers[0].mean(0), numbers[0].std(0)
    named = [column for column in _COLUMNS if column not in (*NUMBERS, *_LEFT_OUT)]
    values = [(column, value) for column in named for value in sorted({row[column] for row in known})]

    def table(rows: list[dict[str, str]], found: Array) -> Table:
        ones = np.array([[row[column] == value for column, value in values] for row in rows], np.float32)
        labels = np.array([row["income"].startswith(">") for row in rows], np.int64)
        groups = np.array([row["sex"] == "Male" for row in rows], np.int64)
        return Table(np.concatenate([((found - middle) / spread).astype(np.float32), ones], axis=1), labels, groups)

    return table(known, numbers[0]), table(asked, numbers[1])


def _rows(text: str) -> list[dict[str, str]]:
    lines = (line.rstrip(".").split(", ") for line in text.splitlines())
    return [dict(zip(_COLUMNS, line, strict=True)) for line in lines if len(line) == len(_COLUMNS)]


def _numbers(rows: list[dict[str, str]]) -> Array:
    found = np.array([[float(row[column]) for column in NUMBERS] for row in rows])
    return np.where(["capital" in column for column in NUMBERS], np.log1p(found), found)


class Scored(NamedTuple):
    """A risk score of 1 to 10 for each, whether a charge followed within two years, and the group, by its name in the file."""

    scores: Array
    labels: Array
    groups: Array


def load_compas() -> Scored:
    """The people that ProPublica kept: scored within 30 days of the arrest, with a known outcome, no ordinary traffic offence."""
    # the file has some heads twice; the first of them is the one that ProPublica used
    with published_file("fairness", "compas").open(encoding="utf-8", newline="") as file:
        heads, *lines = csv.reader(file)
    place = {head: heads.index(head) for head in heads}
    rows = [{head: line[at] for head, at in place.items()} for line in lines]
    kept = [
        row for row in rows
        if row["days_b_screening_arrest"] and abs(int(row["days_b_screening_arrest"])) <= 30 and row["is_recid"] != "-1"
        and row["c_charge_degree"] != "O" and row["score_text"] != "N/A"
    ]  # fmt: skip
    scores, labels = (np.array([int(row[head]) for row in kept]) for head in ("decile_score", "two_year_recid"))
    return Scored(scores, labels, np.array([row["race"] for row in kept]))


def numbered(data: Scored, *, least: int = 1, most: int | None = None) -> tuple[Scored, list[str]]:
    """With groups by number, the largest first, and their names: those of at least so many people, at most so many of the largest."""
    names, sizes = np.unique(data.groups, return_counts=True)
    kept = [str(name) for name in names[np.argsort(-sizes)] if sizes[names == name][0] >= least][:most]
    rows = np.isin(data.groups, kept)
    return Scored(data.scores[rows], data.labels[rows], np.array([kept.index(name) for name in data.groups[rows]])), kept
