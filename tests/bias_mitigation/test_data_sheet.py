"""The data sheet: what can be counted is, and what was not answered says so."""

import hashlib

import pytest

from minitransformers.bias_mitigation.data_sheet import QUESTIONS, data_sheet
from minitransformers.bias_mitigation.model_card import ABSENT

DATA, GROUPS = b"a\nb\nc\nd\n", ["<g1>", "<g2>", "<g1>", "<g1>"]


def test_the_seven_sections_stand_in_their_order_with_all_questions():
    sheet = data_sheet(DATA, name="toy", groups=GROUPS, answers={})
    assert [line[3:].lower() for line in sheet.splitlines() if line.startswith("## ")] == list(QUESTIONS) == [
        "motivation", "composition", "collection", "preprocessing", "uses", "distribution", "maintenance",
    ]  # fmt: skip
    count = sum(map(len, QUESTIONS.values()))
    assert sheet.count(ABSENT) == sheet.count("\n- ") == count


def test_rows_and_checksum_are_computed_from_the_data():
    sheet = data_sheet(DATA, name="toy", groups=GROUPS, answers={})
    assert hashlib.sha256(DATA).hexdigest() in sheet and "| &lt;g1> | 3 |" in sheet and "| &lt;g2> | 1 |" in sheet and "4 rows" in sheet
    assert data_sheet(DATA + b" ", name="toy", groups=GROUPS, answers={}) != sheet


def test_counts_belong_to_the_composition_sorted_and_escaped():
    sheet = data_sheet(DATA, name="<toy>", groups=["<g2>", "<g1>", "<g2>"], answers={"composition": ["a <row>", None, None]})
    begin, end = sheet.index("## Composition"), sheet.index("## Collection")
    digest = hashlib.sha256(DATA).hexdigest()
    expected = f"## Composition\n\n3 rows, sha256 {digest}\n\n| group | rows |\n| --- | --- |\n| &lt;g1> | 1 |\n| &lt;g2> | 2 |\n\n- What does a row stand for? a &lt;row>\n"
    assert sheet.startswith("# Data sheet: &lt;toy>\n") and sheet[begin:end].startswith(expected) and "sha256" not in sheet[:begin] + sheet[end:]


def test_answers_stand_behind_their_questions():
    answers = {section: [f"answer {section} {i}" for i in range(len(asked))] for section, asked in QUESTIONS.items()}
    sheet = data_sheet(DATA, name="toy", groups=GROUPS, answers=answers)
    assert ABSENT not in sheet
    for section, asked in QUESTIONS.items():
        for i, question in enumerate(asked):
            assert f"- {question} answer {section} {i}\n" in sheet


def test_some_answers_leave_the_other_questions_open():
    sheet = data_sheet(DATA, name="toy", groups=GROUPS, answers={"uses": [None, "for no decision about people"]})
    assert f"{QUESTIONS['uses'][0]} {ABSENT}" in sheet and f"{QUESTIONS['uses'][1]} for no decision about people" in sheet


def test_the_same_input_gives_the_same_bytes_whatever_the_order_of_the_answers():
    one = {"uses": ["x", "y"], "distribution": ["z"]}
    other = {"distribution": ["z"], "uses": ["x", "y"]}
    assert data_sheet(DATA, name="toy", groups=GROUPS, answers=one) == data_sheet(DATA, name="toy", groups=GROUPS, answers=other)


def test_an_answer_to_no_question_is_refused_by_name():
    with pytest.raises(ValueError, match=r"answers\.use: got a section of that name"):
        data_sheet(DATA, name="toy", groups=GROUPS, answers={"use": ["x", "y"]})
    with pytest.raises(ValueError, match=r"answers\.uses: got x, wants a list of 2"):
        data_sheet(DATA, name="toy", groups=GROUPS, answers={"uses": ["x"]})
    with pytest.raises(ValueError, match="groups: got 1 groups"):
        data_sheet(DATA, name="toy", groups=["<g1>"], answers={})
