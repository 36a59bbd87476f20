"""A data sheet: where data come from, what is in them, what was done to them, and for what they should not be used.

A model's bias often begins in how its data came about, and that is nowhere in the numbers. A sheet asks. What can be counted is counted
here, rows of each group and a checksum of the bytes; what only people know are questions, and one that has no answer stands there as
"not provided". Costs one pass over the bytes.

Source: Gebru et al. 2018, arXiv:1803.09010, whose seven sections these are. Differs: a few of its questions for each section.

    sha256 of the bytes, and rows of each group, are computed   (1)
    answer = what was written, else "not provided"; an answer to no question is refused   (2)
    sheet = the seven sections, in their order               (3)
"""

import hashlib
from collections.abc import Sequence

from minitransformers.bias_mitigation.model_card import ABSENT, document, shown, table
from minitransformers.foundation import bad, example, invalid, procedure

QUESTIONS = {
    "motivation": ("For what purpose was the data set made?", "Who made it, and who paid for it?"),
    "composition": ("What does a row stand for?", "Is anything missing, and why?", "Does it identify people, or hold what is confidential?"),
    "collection": ("How was each row obtained?", "Over what time?", "Did the people concerned know and agree?"),
    "preprocessing": ("What was cleaned, filtered or labelled, and how?", "Are the raw data kept?"),
    "uses": ("For what has it been used?", "For what should it not be used?"),
    "distribution": ("Who gets it, and under which licence?",),
    "maintenance": ("Who answers questions about it?", "Will it be corrected, and how will users know?"),
}


@procedure(
    title="Data sheet",
    source="Gebru et al. 2018, arXiv:1803.09010",
    example=lambda rng: example(b"row 1\nrow 2\nrow 3\n", name="toy", groups=["<g1>", "<g2>", "<g1>"], answers={"uses": ["a demonstration", None]}),
    rejects=[
        bad(data=b""), bad(data="text"), bad(name=""), bad(groups=["<g1>", "<g1>"]), bad(groups=[]), bad("answers.use", answers={"use": ["x"]}),
        bad("answers.uses", answers={"uses": ["x"]}), bad("answers.uses", answers={"uses": "xy"}),
    ],
)  # fmt: skip
def data_sheet(data: bytes, *, name: str, groups: Sequence[str], answers: dict) -> str:
    """The sheet as Markdown. data are the bytes of the data set, groups the group of each row.

    answers has, for any of the sections of QUESTIONS, a list of one answer for each question, None where there is none.
    Raises ValueError for no data, an empty name, fewer than two groups, an unknown section, and another number of answers.
    """
    if not data:
        raise invalid("data", got="no bytes", wants="the bytes of the data set")
    if not name.strip():
        raise invalid("name", got=repr(name), wants="a name")
    counts = {group: list(groups).count(group) for group in sorted(groups)}
    if len(counts) < 2:
        raise invalid("groups", got=f"{len(counts)} groups", wants="at least 2, one for each row")
    if unknown := sorted(set(answers) - set(QUESTIONS)):
        raise invalid(f"answers.{unknown[0]}", got="a section of that name", wants=", ".join(QUESTIONS))
    counted = [f"{len(groups)} rows, sha256 {hashlib.sha256(data).hexdigest()}", "", *table(["group", "rows"], counts.items()), ""]  # (1)
    sections = []
    for section, questions in QUESTIONS.items():
        given = answers.get(section) or [None] * len(questions)
        if isinstance(given, str) or len(given) != len(questions):
            raise invalid(f"answers.{section}", got=shown(given), wants=f"a list of {len(questions)}, one for each question")
        lines = counted if section == "composition" else []
        asked = [f"- {question} {shown(answer or ABSENT)}" for question, answer in zip(questions, given, strict=True)]  # (2)
        sections.append((section.capitalize(), [*lines, *asked]))
    return document(f"Data sheet: {shown(name)}", sections)  # (3)
