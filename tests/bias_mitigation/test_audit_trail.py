"""The audit trail: every edit leaves a trace, where it can; and where it cannot, the tests say so."""

import hashlib
import json

import pytest

from minitransformers.bias_mitigation.audit_trail import START, append_record, verify_trail

RECORDS = [{"step": "data", "rows": 3}, {"step": "reweighting", "gap": 0.1 + 0.2}, {"step": "evaluation", "groups": ["<g1>", "ü"]}, {"step": "release"}]


def trail_of(records):
    trail = b""
    for record in records:
        trail = append_record(trail, record=record)
    return trail


TRAIL = trail_of(RECORDS)
HEAD = verify_trail(TRAIL).head


def test_each_line_is_canonical_json_with_the_checksum_of_the_one_before():
    previous = "0" * 64
    for i, (line, record) in enumerate(zip(TRAIL.splitlines(), RECORDS, strict=True)):
        assert json.loads(line) == {"index": i, "previous": previous, "record": record}
        assert b": " not in line and b", " not in line
        previous = hashlib.sha256(line).hexdigest()
    assert previous == HEAD


def test_a_sound_trail_is_sound():
    verdict = verify_trail(TRAIL, head=HEAD)
    assert verdict.sound and (verdict.records, verdict.broken_at, verdict.problem) == (4, -1, "")
    assert verify_trail(b"") == (0, START, -1, "") and verify_trail(b"", head=START).sound


def test_adding_leaves_what_was_there_and_numbers_come_back():
    longer = append_record(TRAIL, record={"more": 1})
    assert longer.startswith(TRAIL) and verify_trail(longer).records == 5
    assert json.loads(TRAIL.splitlines()[1])["record"]["gap"] == 0.1 + 0.2
    assert append_record(TRAIL, record={"b": 1, "a": 2}) == append_record(TRAIL, record={"a": 2, "b": 1})


def test_a_change_of_any_one_byte_is_found():
    for place in range(len(TRAIL)):
        changed = TRAIL[:place] + bytes([TRAIL[place] ^ 1]) + TRAIL[place + 1 :]
        verdict = verify_trail(changed, head=HEAD)
        assert not verdict.sound, place
        line = TRAIL[:place].count(b"\n")
        assert verdict.broken_at in (line, line + 1), "the line itself, or the next, whose checksum no longer fits"


def test_a_byte_that_is_lost_or_put_in_is_found():
    for place in range(0, len(TRAIL), 7):
        assert not verify_trail(TRAIL[:place] + TRAIL[place + 1 :], head=HEAD).sound
        assert not verify_trail(TRAIL[:place] + b" " + TRAIL[place:], head=HEAD).sound


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 3], [0, 0, 1, 2, 3], [1, 2, 3]])
def test_lines_that_are_moved_lost_or_doubled_are_found_without_the_head(order):
    lines = TRAIL.splitlines(keepends=True)
    assert not verify_trail(b"".join(lines[i] for i in order)).sound


def test_without_the_head_the_last_line_and_a_trail_written_anew_pass():
    """The negative control, and the reason for the head: the chain alone proves nothing of its own end."""
    lines = TRAIL.splitlines(keepends=True)
    shorter, forged = b"".join(lines[:3]), trail_of([*RECORDS[:1], {"step": "nothing"}, *RECORDS[2:]])
    last = TRAIL.replace(b"release", b"relapse")
    for other in (shorter, forged, last):
        assert other != TRAIL and verify_trail(other).sound
        verdict = verify_trail(other, head=HEAD)
        assert (verdict.problem, verdict.broken_at) == ("the head is another", verdict.records - 1)
    assert verify_trail(b"", head=HEAD).broken_at == 0


def test_a_broken_trail_is_not_added_to():
    with pytest.raises(ValueError, match=r"trail: got line 2: the checksum"):
        append_record(TRAIL.replace(b"reweighting", b"reweighing!"), record={"x": 1})
    with pytest.raises(ValueError, match="no end"):
        append_record(TRAIL[:-1], record={"x": 1})


@pytest.mark.parametrize("record", [{}, {"x": float("nan")}, {"x": float("inf")}, {"x": {1}}, {1: "x"}, {"x": (1, 2)}])
def test_what_would_not_come_back_is_refused(record):
    with pytest.raises(ValueError, match="record"):
        append_record(b"", record=record)
