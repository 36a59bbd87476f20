"""Exercises are made out of the source, and whoever fills one in wrongly hears what is wrong."""

import inspect

import numpy as np
import pytest

from minitransformers import catalogue
from minitransformers.foundation import trees, trusted
from minitransformers.foundation.exercises import _parts, blank, judge
from minitransformers.foundation.gradients import fresh, one_each

MARK = "        raise NotImplementedError"


def own_backward(entry):
    """Whether there is one that could be left out."""
    try:
        _parts(entry)
    except ValueError:
        return False
    return True


WITH_BLANK = [name for name, entry in catalogue.concepts().items() if own_backward(entry)]


def loaded(text):
    space = {}
    exec(compile(text, "exercise.py", "exec"), space)
    return space[space["EXERCISE"]]


def filled(name, *changes):
    """The exercise with the concept's own backward in it, changed by (old, new)."""
    entry = catalogue.find(name)
    source, _, hole = _parts(entry)
    body = "\n".join(source.splitlines()[hole.body[0].lineno - 1 : hole.end_lineno])
    for old, new in changes:
        assert old in body, f"{old} is not in the backward of {name}"
        body = body.replace(old, new)
    text = blank(entry)
    (line,) = (line for line in text.splitlines() if "raise NotImplementedError" in line)
    return loaded(text.replace(line, body))


def test_nearly_every_concept_can_be_an_exercise():
    assert len(WITH_BLANK) > 0.8 * len(catalogue.concepts())


@pytest.mark.parametrize("name", WITH_BLANK)
def test_a_blank_lacks_the_backward_and_nothing_else(name):
    entry = catalogue.find(name)
    assert judge(entry, loaded(blank(entry))) == [f"not written yet: the backward of {name}"]
    example = entry.example(np.random.default_rng(0))
    gradients = []
    for function in (entry.function, trusted(filled(name))):
        out, backward = function(*example.args, **fresh(example.config))
        dout = trees.map(lambda leaf: np.ones_like(leaf), out)
        gradients.append([np.asarray(leaf) for _, leaf in trees.leaves(one_each(backward(dout), len(example.args)))])
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


def test_the_equations_of_the_backward_are_to_be_found():
    text = blank(catalogue.find("rms_norm"))
    assert "(3)" in text and "(4)" not in text and "(7)" not in text and "@concept" not in text
    assert "params.gain" in text and "(2, 3, 7)" in text


@pytest.mark.parametrize("name", WITH_BLANK)
def test_the_concepts_own_backward_is_right(name):
    assert judge(catalogue.find(name), filled(name)) == []


@pytest.mark.parametrize(
    ("name", "change", "where", "why"),
    [
        ("rms_norm", ("dunit - unit * shared", "dunit + unit * shared"), "gradient of x", "equation (6)"),  # a wrong sign
        ("rms_norm", ("(dunit - unit * shared)", "dunit"), "gradient of x", "`dx = dunit / rms`"),           # a missing term
        ("softmax", ("- ", "+ "), "gradient of", "likely"),
        ("linear", ("rows.T @", "-rows.T @"), "gradient of params.weight", "sign is flipped"),
        ("layer_norm", ("return LayerNorm(dgain, dbias), dx", "return LayerNorm(dbias, dgain), dx"), "gradient of params", "wrong order"),
    ],
)  # fmt: skip
def test_a_mistake_is_placed_and_named(name, change, where, why):
    found = "\n".join(judge(catalogue.find(name), filled(name, change)))
    assert where in found and why in found, found


@pytest.mark.parametrize(
    ("name", "returned", "says"),
    [
        ("rms_norm", "dout", "backward returns an array, wants 2, one an argument"),
        ("rms_norm", "(dout,)", "backward returns 1 gradient, wants 2, one an argument"),
        ("rope", "None", "what backward returns does not fit the arguments: that of x is nothing, wants an array"),
        ("rope", "dout[0]", "gradient of x: its shape is (3, 5, 8), wants (2, 3, 5, 8)"),
    ],
)
def test_what_is_no_list_of_gradients_is_told_in_one_sentence(name, returned, says):
    text = blank(catalogue.find(name))
    (line,) = (line for line in text.splitlines() if "raise NotImplementedError" in line)
    assert judge(catalogue.find(name), loaded(text.replace(line, f"        return {returned}"))) == [says]


def test_a_transposed_weight_is_named():
    def linear(params, x):
        out, backward = catalogue.find("linear").function(params, x)

        def wrong(dout):
            dparams, dx = backward(dout)
            return dparams._replace(weight=dparams.weight.T), dx

        return out, wrong

    assert any("it is transposed" in finding for finding in judge(catalogue.find("linear"), linear))


def test_a_forward_that_was_changed_is_refused():
    entry = catalogue.find("rms_norm")
    text = inspect.getsource(entry.function)
    assert "(1)" in text
    changed = loaded(blank(entry).replace("unit = x / rms", "unit = 2 * x / rms"))
    assert judge(entry, changed) == ["the forward was changed: it gives another output than the concept's"]


def test_an_error_is_told_with_its_line():
    text = blank(catalogue.find("rms_norm")).replace("raise NotImplementedError(", "return nonsense(")
    (finding,) = judge(catalogue.find("rms_norm"), loaded(text), file="exercise.py")
    number = next(i for i, line in enumerate(text.splitlines(), 1) if "nonsense" in line)
    assert finding == f"line {number}: NameError: name 'nonsense' is not defined"


def test_what_writes_to_dout_or_loses_a_dtype_is_refused():
    ours = catalogue.find("rms_norm").function

    def writes(params, x, **config):
        out, backward = ours(params, x, **config)

        def own(dout):
            gradients = backward(dout)
            dout *= 2
            return gradients

        return out, own

    def widens(params, x, **config):
        out, backward = ours(params, x, **config)
        return out, lambda dout: trees.map(lambda leaf: leaf.astype(np.float64), backward(dout))

    assert any("dout was written to" in finding for finding in judge(catalogue.find("rms_norm"), writes))
    assert any(finding.startswith("dtypes") for finding in judge(catalogue.find("rms_norm"), widens))


@pytest.mark.parametrize("name", ["gelu", "magnitude_mask"])
def test_what_has_no_backward_of_its_own_is_no_exercise(name):
    with pytest.raises(ValueError, match=name):
        blank(catalogue.find(name))
