"""An audit trail: a list of records that can be added to and not changed without trace.

Each record is a line, and each line holds the checksum of the line before it. Who changes one line must change all that follow, and then
the checksum of the last line is another. So it is enough to keep that one number somewhere else. The trail is bytes; where they are kept is
the caller's affair. Adding costs one checksum of the last line, verifying one of each.

Source: hash chains are Haber and Stornetta 1991, How to time-stamp a digital document, doi:10.1007/BF00196791; checksums are SHA-256.
h is SHA-256 in hexadecimal, canonical JSON has sorted keys, no spaces, and every number in its shortest form.

    line_i = canonical JSON of {index: i, previous: p_i, record: r_i}   (1)
    p_0 = 64 zeros, p_i = h(line_i-1)                        (2)
    head = h(the last line)                                  (3)
    sound up to i, while line_j is canonical and bears the index j and the p_j of (2), j = 0 .. i   (4)
"""

import hashlib
import json
from typing import NamedTuple

from minitransformers.foundation import bad, example, invalid, procedure

START = 64 * "0"


class TrailVerdict(NamedTuple):
    """How many records there are, the checksum of the last line, and what is wrong with the first bad line: its number, and words."""

    records: int
    head: str
    broken_at: int
    problem: str

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.problem


def _line(index: int, previous: str, record: dict) -> bytes:
    whole = {"index": index, "previous": previous, "record": record}
    return json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()  # (1)


def _head(lines: list[bytes]) -> str:
    return hashlib.sha256(lines[-1]).hexdigest() if lines else START  # (2)


_TRAIL = _line(0, START, {"step": "reweighting"}) + b"\n"


@procedure(
    title="Append to a trail",
    source="Haber and Stornetta 1991, How to time-stamp a digital document, doi:10.1007/BF00196791",
    example=lambda rng: example(_TRAIL, record={"step": "evaluation", "gap": 0.125}),
    rejects=[
        bad(trail="text"), bad(trail=_TRAIL[:-1]), bad(trail=_TRAIL.replace(b"0", b"1", 1)), bad(record={}), bad(record={"gap": float("nan")}),
        bad(record={"gap": {1, 2}}), bad(record={1: "one"}),
    ],
)  # fmt: skip
def append_record(trail: bytes, *, record: dict) -> bytes:
    """The trail with one line more; b"" is a trail without records. record has texts for keys, and values that JSON knows.

    Raises ValueError where the trail is not sound, the record is empty, or it does not come back from JSON as it was.
    """
    verdict = verify_trail(trail)
    if verdict.problem:
        raise invalid("trail", got=f"line {verdict.broken_at}: {verdict.problem}", wants="a trail that verify_trail finds sound")
    try:
        line = _line(verdict.records, verdict.head, record)
    except (TypeError, ValueError) as error:
        raise invalid("record", got=str(error), wants="what JSON can say: texts, finite numbers, lists, tables") from None
    if not record or json.loads(line)["record"] != record:
        raise invalid("record", got=record, wants="at least one entry, with texts for keys")
    return trail + line + b"\n"


@procedure(
    title="Verify a trail",
    source="Haber and Stornetta 1991, How to time-stamp a digital document, doi:10.1007/BF00196791",
    example=lambda rng: example(append_record(_TRAIL, record={"step": "evaluation"})),
    rejects=[bad(trail="text"), bad(head="abc")],
)
def verify_trail(trail: bytes, *, head: str | None = None) -> TrailVerdict:
    """Whether the lines are in order and each bears the checksum of the one before.

    head is what this returned when the trail was last seen to be right, kept elsewhere. Without it, a change of the last line, lines cut
    off at the end, and a trail written anew from some line on are not seen.
    Raises ValueError where head is no checksum.
    """
    if head is not None and len(head) != 64:
        raise invalid("head", got=repr(head), wants="64 digits in hexadecimal")
    *lines, rest = trail.split(b"\n")
    found = _head(lines)                                     # (3)
    for i, line in enumerate(lines):
        if problem := _problem(i, line, _head(lines[i - 1 : i] if i else [])):
            return TrailVerdict(len(lines), found, i, problem)
    if rest:
        return TrailVerdict(len(lines), found, len(lines), "the last line has no end")
    if head is not None and head != found:
        return TrailVerdict(len(lines), found, max(len(lines) - 1, 0), "the head is another")
    return TrailVerdict(len(lines), found, -1, "")


def _problem(index: int, line: bytes, previous: str) -> str:
    try:
        whole = json.loads(line)
        again = _line(whole["index"], whole["previous"], whole["record"])
    except (ValueError, KeyError, TypeError):
        return "no record"
    if again != line:
        return "not in canonical form"
    if whole["index"] != index:
        return f"bears the index {whole['index']}"
    return "" if whole["previous"] == previous else "the checksum of the line before is another"  # (4)
