"""Which lines compute an equation: the statement that bears its number, and what is made ready right above it."""

import ast
from textwrap import dedent

import pytest
from _hooks.equations import split_comments
from _hooks.statements import in_words, is_check, lit_lines


def lit(source: str) -> dict[int, list[int]]:
    """Equation number to its lines; the first line of the text is line 1."""
    source = dedent(source).lstrip("\n")
    lines, marks = split_comments(source)
    found: dict[int, list[int]] = {}
    for line, numbers in sorted(lit_lines(ast.parse(source), lines, marks).items()):
        for number in numbers:
            found.setdefault(number, []).append(line)
    return found


def test_an_equation_reaches_up_to_the_one_before():
    found = lit("""
        first = x        # (1)
        half = first / 2
        square = half ** 2
        second = square  # (2)
        after = second
    """)
    assert found == {1: [1], 2: [2, 3, 4]}


def test_a_marked_line_stands_for_its_whole_statement():
    found = lit("""
        out = np.where(
            mask,
            x,  # kept  (1)
            0,
        )
        total = out.sum()  # (2) (3)
    """)
    assert found == {1: [1, 2, 3, 4, 5], 2: [6], 3: [6]}


@pytest.mark.parametrize(
    "apart",
    ["", "# a word", "def helper(): pass", "import math", "if x < 0: raise ValueError", "check_shape(x)", "if x < 0: return x"],
    ids=["blank line", "comment", "def", "import", "guard", "call of a check", "a way out"],
)
def test_what_parts_statements_ends_the_reach(apart):
    found = lit(f"def f(x):\n    a = x\n    {apart}\n    b = a\n    c = b  # (1)\n    return c\n")
    assert found == {1: [4, 5]}


def test_the_docstring_of_a_function_is_no_part_of_its_first_equation():
    assert lit('def f(x):\n    """Doc."""\n    y = 2 * x\n    return y  # (1)\n') == {1: [3, 4]}


def test_a_branch_without_a_number_is_reached_over_as_a_whole():
    found = lit("""
        if bias is not None:
            scores = scores + bias
        weights = softmax(scores)  # (1)
    """)
    assert found == {1: [1, 2, 3]}


def test_a_block_with_one_number_is_a_statement_that_bears_it():
    found = lit("""
        total = 0
        for x in xs:
            square = x * x
            total += square  # (1)
            count += 1
        mean = total / count  # (2)
    """)
    assert found == {1: [1, 2, 3, 4], 2: [6]}


def test_both_branches_of_one_equation_belong_to_it_with_their_headers():
    found = lit("""
        if causal:
            mask = triangle
            heads = attend(mask)  # (1)
        else:
            heads = attend()  # (1)
    """)
    assert found == {1: [1, 2, 3, 4, 5]}


def test_a_loop_with_several_numbers_lights_its_statements_one_by_one():
    found = lit("""
        dx = np.zeros_like(x)
        for t in reversed(range(n)):
            weight = decay[t]
            dstate = weight * dstate  # (1)
            dx[t] = dstate  # (2)
            dstate = dstate.copy()
    """)
    assert found == {1: [3, 4], 2: [5]}, "the header and what stands before the loop belong to neither"


def test_a_number_on_a_header_stands_for_the_block():
    found = lit("""
        with np.errstate(over="ignore"):  # (1)
            a = np.exp(x)
            b = 1 / a
    """)
    assert found == {1: [1, 2, 3]}


def test_several_numbers_in_one_statement_keep_to_their_lines():
    found = lit("""
        square = x @ x
        return Focus(
            square,  # (1)
            square ** 2,  # (2)
        )
    """)
    assert found == {1: [1, 3], 2: [1, 4]}, "what is made ready above serves both"


def test_one_number_in_two_places_has_the_lines_of_both():
    assert lit("a = x  # (1)\n\nb = a\nc = b  # (1)\n") == {1: [1, 3, 4]}


def test_every_handler_and_case_is_a_block():
    found = lit("""
        try:
            y = solve(A)  # (1)
        except LinAlgError:
            B = A + eye
            y = solve(B)  # (2)
        match kind:
            case "a":
                z = y  # (3)
            case _:
                w = 2
                z = w  # (4)
    """)
    assert found == {1: [2], 2: [4, 5], 3: [8], 4: [10, 11]}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("if a: raise E", True),
        ("for a in b:\n if a: raise E", True),
        ("if a:\n c = 1\n raise E", True),
        ("if a: raise E\nelse: b = 1", False),
        ("check(a)", False),
        ("check_form(a)", True),
        ("_check_form(a)", True),
        ("shapes.check_form(a)", True),
        ("a = check_form(a)", False),
    ],
)
def test_what_is_a_check_of_arguments(source, expected):
    assert is_check(ast.parse(source).body[0]) is expected


@pytest.mark.parametrize(
    ("numbers", "words"), [([], ""), ([7], "line 7"), ([41, 42, 43], "lines 41–43"), ([5, 6, 9, 12, 11], "lines 5–6, 9, 11–12")]
)
def test_lines_in_words(numbers, words):
    assert in_words(numbers) == words
