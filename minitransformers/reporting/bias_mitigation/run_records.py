"""A model card and an audit trail of a run, as tables show them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from minitransformers.bias_mitigation.audit_trail import append_record, verify_trail


def trail_of(data: Mapping[str, Any], evaluations: Iterable[Mapping[str, Any]], card: str) -> bytes:
    """A line for the data, for each evaluation, and for the checksum of the card."""
    trail = append_record(b"", record={"step": "data", **data})
    for evaluation in evaluations:
        trail = append_record(trail, record={"step": "evaluation", **evaluation})
    return append_record(trail, record={"step": "card", "sha256": hashlib.sha256(card.encode()).hexdigest()})


def edits_are_found(trail: bytes) -> bool:
    """Whether a trail is sound as it is, and is not with one letter more in any line but the last."""
    lines = trail.splitlines(keepends=True)
    edited = [b"".join([*lines[:i], line.replace(b'"step":"', b'"step":"x', 1), *lines[i + 1 :]]) for i, line in enumerate(lines[:-1])]
    return verify_trail(trail).sound and not any(verify_trail(other).sound for other in edited)


def card_rows(card: str) -> list[list[str]]:
    """The head of each section of a card, and what stands there, with a slash for a new line."""
    parts = [part.partition("\n\n") for part in card.split("\n## ")[1:]]
    return [[head, " / ".join(line.strip("| ").replace(" | ", ", ") for line in text.splitlines() if line.strip("| -"))] for head, _, text in parts]


def trail_rows(trail: bytes) -> list[list[str]]:
    """Each line, with checksums cut short."""
    return [[re.sub(r"[0-9a-f]{64}", lambda digits: digits.group()[:8] + "…", line.decode())] for line in trail.splitlines()]
