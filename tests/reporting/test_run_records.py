"""What a run says of itself, in tables; and that an edit of its trail is found."""

from minitransformers.bias_mitigation.audit_trail import append_record
from minitransformers.reporting.bias_mitigation.run_records import card_rows, edits_are_found, trail_of, trail_rows

CARD = "# A model\n\n## Data\n\n| set | rows |\n| --- | --- |\n| one | 3 |\n\n## Use\n\nNone.\n"


def test_a_trail_has_a_line_for_each_step_and_is_found_to_be_edited():
    trail = trail_of({"bytes": 3}, [{"seed": 0}, {"seed": 1}], CARD)
    lines = [line for (line,) in trail_rows(trail)]
    assert [next(step for step in ("data", "evaluation", "card") if f'"step":"{step}"' in line) for line in lines] == ["data", "evaluation", "evaluation", "card"]
    assert all("…" in line for line in lines) and edits_are_found(trail)


def test_what_is_no_trail_is_not_taken_for_one():
    other = append_record(b"", record={"step": "data"}).replace(b"data", b"date") + append_record(b"", record={"step": "card"})
    assert not edits_are_found(other)


def test_a_card_is_shown_by_its_heads():
    assert card_rows(CARD) == [["Data", "set, rows / one, 3"], ["Use", "None."]]
