"""The README and CONTRIBUTING say what is so."""

import re
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from pathlib import Path

import pytest

from minitransformers import catalogue

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CHAPTER_ROW = re.compile(r"^\| \[(\w+)\]\(docs/(\w+)/index\.md\) \| .+ \|$", re.MULTILINE)


def test_the_ten_lines_print_what_they_say():
    sybil = pytest.importorskip("sybil", reason="sybil is not installed")
    from sybil.parsers.markdown import PythonCodeBlockParser

    reader = sybil.Sybil(parsers=[PythonCodeBlockParser(doctest_optionflags=ELLIPSIS | NORMALIZE_WHITESPACE)])
    examples = list(reader.parse(README).examples())
    assert examples
    for example in examples:
        example.evaluate()


def test_the_table_has_every_chapter_in_reading_order():
    chapters = list(dict.fromkeys(entry.chapter for entry in catalogue.concepts().values()))
    assert CHAPTER_ROW.findall(README.read_text()) == [(chapter, chapter) for chapter in chapters]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_commands_that_are_named_exist(run):
    options = {}
    for line in re.findall(r"(?:^|`)minitransformers ([a-z][^`\n|]*)", README.read_text(), re.MULTILINE):
        command, *rest = line.split()
        options.setdefault(command, set()).update(word for word in rest if word.startswith("--"))
    assert {"run", "check", "tour", "train", "generate", "list", "show"} <= options.keys()
    for command, named in options.items():
        help_text = run(command, "--help").out
        assert help_text and all(option in help_text for option in named), command


def test_the_printed_check_is_what_check_prints(run):
    printed = README.read_text().split("```text\n")[1].split("```")[0]
    actual = run("check", "linear", "softmax").out

    def without_digits(text):
        return re.sub(r"\d\.\de-\d\d", "N", text)

    assert without_digits(actual).replace("(linear)", "(softmax)") == without_digits(printed)
