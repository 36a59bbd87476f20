"""The label: it registers, refuses what is incomplete or taken, and changes nothing in the function."""

import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers import catalogue
from minitransformers.foundation import bad, checks, concept, example, invalid, procedure, slot

TOUR = dict(title="T", source="S", example=lambda rng: example(rng.normal(size=3)))


@pytest.fixture
def _clean_catalogue(monkeypatch):
    catalogue.concepts()  # load all first: what is loaded while a copy stands in would be lost with it
    monkeypatch.setattr(catalogue, "_entries", dict(catalogue._entries))


@pytest.mark.usefixtures("_clean_catalogue")
class TestLabel:
    def test_a_labelled_function_is_in_the_catalogue_with_all_that_was_said(self):
        def step(*_):
            pass

        @concept(**TOUR, roles=("channel",), rejects=[bad(x=1.0)], step=step)
        def doubled(x):
            return 2 * x, lambda dout: 2 * dout

        entry = catalogue.concepts()["doubled"]
        assert (entry.name, entry.title, entry.source, entry.roles, entry.step) == ("doubled", "T", "S", ("channel",), step)
        assert entry.function(np.ones(2))[0].tolist() == [2, 2]
        assert entry.init is None
        assert checks.gradients(entry).passed

    def test_a_procedure_stands_beside_the_concepts_and_has_the_checks_that_need_no_gradient(self):
        @procedure(title="T", source="S", example=lambda rng: example(rng.normal(size=3), power=2), rejects=[bad(power=-1)])
        def raised(x: Float[Array, "n"], *, power: int):
            if power < 0:
                raise invalid("power", got=power, wants="no negative number")
            return x**power

        entry = catalogue.procedures()["raised"]
        assert entry.is_procedure and "raised" in catalogue.entries() and "raised" not in catalogue.concepts()
        assert entry.page == __name__.rpartition(".")[2]
        found = checks.run(entry)
        assert {outcome.check for outcome in found} == {"dtypes", "purity", "strides", "scalars", "shapes", "signature", "rejections"}
        assert all(outcome.passed for outcome in found), [outcome.message for outcome in found]

    def test_an_impure_procedure_is_caught(self):
        @procedure(**TOUR)
        def sorting(x):
            x.sort()
            return x

        @procedure(title="T", source="S", example=lambda rng: example(rng=np.random.default_rng(0)))
        def forgetting(*, rng):
            return np.random.default_rng().normal(size=2)

        assert "written to" in checks.purity(catalogue.entries()["sorting"]).message
        assert "a second call differs" in checks.purity(catalogue.entries()["forgetting"]).message

    def test_another_form_shares_the_page_of_the_plain_one(self):
        @concept(**TOUR, form_of="plain")
        def faster(x):
            return x, lambda dout: dout

        assert catalogue.find("faster").page == "plain"

    def test_a_surrogate_is_what_the_gradient_is_held_against(self):
        def rounding(name, gradient_of):
            def function(x):
                return np.round(x), lambda dout: dout

            function.__name__ = name
            concept(**TOUR, gradient_of=gradient_of)(function)
            return checks.gradients(catalogue.find(name))

        assert rounding("straight_through", lambda x: lambda x: x).passed
        assert "2 times" not in rounding("straight_through", lambda x: lambda x: x).message
        assert "0.5 times" in rounding("half_of_it", lambda x: lambda x: 2 * x).message
        assert not rounding("itself", None).passed           # the slope of a step is 0

    def test_a_surrogate_may_hold_what_is_detached_at_the_point(self):
        @concept(**TOUR, gradient_of=lambda x: lambda y: y / np.linalg.norm(x))
        def detached_direction(x):
            norm = np.linalg.norm(x)
            return x / norm, lambda dout: dout / norm

        assert checks.gradients(catalogue.find("detached_direction")).passed

    def test_none_in_the_place_of_a_part_of_dout_is_zero_inside_another_concept_too(self):
        @concept(**TOUR)
        def split(x):
            return (x, 2 * x), lambda dout: dout[0] + 2 * dout[1]

        @concept(**TOUR)
        def second(x):
            (_, double), backward = split(x)
            return double, lambda dout: backward((None, dout))

        x = np.ones(3)
        assert split(x)[1]((None, x)).tolist() == [2, 2, 2]
        assert split(x)[1]((x, None)).tolist() == [1, 1, 1]
        assert split(x)[1](None).tolist() == [0, 0, 0]
        assert second(x)[1](x).tolist() == [2, 2, 2] and second(x)[1](None).tolist() == [0, 0, 0]
        assert checks.zeros(catalogue.find("split")).passed

    def test_what_fails_inside_is_run_again_to_say_what_did_not_fit_where(self):
        @concept(**TOUR)
        def inner(x: Float[Array, "n"], y: Float[Array, "n"]):
            return x + y, lambda dout: (dout, dout)

        @concept(**TOUR)
        def outer(x):
            out, backward = inner(x, np.ones(2))
            return out, lambda dout: backward(dout)[0]

        @concept(**TOUR)
        def broken(x):
            raise TypeError("of its own")

        with pytest.raises(ValueError, match=r"outer, within: y: got shape \(2,\), wants \(n\) with n = 3 as in x"):
            outer(np.ones(3))
        with pytest.raises(TypeError, match="of its own"):
            broken(np.ones(3))

    def test_numbers_that_numpy_made_do_not_widen_the_result(self):
        @concept(title="T", source="S", example=lambda rng: example(rng.normal(size=3)))
        def careful(x, *, scale: float = 0.1):
            return x * scale, lambda dout: dout * scale

        assert careful(np.ones(3, np.float32), scale=np.float64(0.1))[0].dtype == np.float32
        assert checks.scalars(catalogue.find("careful")).passed

    def test_two_concepts_of_one_name_are_refused(self):
        def make():
            @concept(**TOUR)
            def twin(x):
                return x, lambda dout: dout

        def make_another():
            @concept(**TOUR)
            def twin(x):
                return x, lambda dout: dout

        make()
        make()  # the same function again, as in a notebook cell that runs twice
        with pytest.raises(ValueError, match="concept twin: the name is taken"):
            make_another()

    @pytest.mark.parametrize("part", ["title", "source"])
    def test_an_empty_part_is_refused(self, part):
        with pytest.raises(ValueError, match=f"the label has no {part}"):
            concept(**{**TOUR, part: " "})(lambda x: x)

    @pytest.mark.parametrize("part", ["title", "source", "example"])
    def test_a_missing_part_is_refused(self, part):
        with pytest.raises(TypeError, match=part):
            concept(**{name: value for name, value in TOUR.items() if name != part})

    def test_an_unknown_role_is_refused(self):
        with pytest.raises(ValueError, match="unknown role 'mixr'"):
            concept(**TOUR, roles=["mixr"])(lambda x: x)

    def test_the_function_keeps_its_name_signature_and_words(self):
        import inspect

        @concept(**TOUR)
        def named(x, *, power: int = 2):
            """Words."""
            return x, lambda dout: dout

        assert (named.__name__, named.__doc__) == ("named", "Words.")
        assert list(inspect.signature(named).parameters) == ["x", "power"]

    @pytest.mark.parametrize(
        ("backward", "check", "says"),
        [
            (lambda x, dout: 2 * dout, "gradients", "2 times"),
            (lambda x, dout: dout.astype(np.float64), "dtypes", "float64 from float32"),
            (lambda x, dout: np.multiply(dout, 1, out=dout) * 0 + np.add(dout, 1, out=dout), "purity", "dout was written to"),
            (lambda x, dout: np.multiply(x, 0, out=x) + dout, "purity", "an argument was written to"),
        ],
    )
    def test_the_generic_checks_catch_what_they_are_for(self, backward, check, says):
        @concept(**TOUR)
        def flawed(x):
            return x + 0, lambda dout: backward(x, dout)

        outcome = checks.CHECKS[check](catalogue.concepts()["flawed"])
        assert not outcome.passed
        assert says in outcome.message

    @pytest.mark.parametrize("check", ["dtypes", "strides"])
    def test_a_result_that_is_no_number_is_not_taken_for_none(self, check):
        @concept(**TOUR)
        def vanishing(x):
            plain = x.dtype == np.float64 and x.flags.c_contiguous
            return x if plain else x * np.asarray(np.nan, x.dtype), lambda dout: dout

        assert not checks.CHECKS[check](catalogue.concepts()["vanishing"]).passed

    def test_hidden_state_is_caught(self):
        calls = []

        @concept(**TOUR)
        def counting(x):
            calls.append(1)
            return x + 1e-9 * len(calls), lambda dout: dout

        assert "a second call differs" in checks.purity(catalogue.concepts()["counting"]).message

    def test_overflow_is_caught(self):
        @concept(**TOUR)
        def naive(x):
            return np.exp(x), lambda dout: dout * np.exp(x)

        assert not checks.large_inputs(catalogue.concepts()["naive"]).passed

    def test_a_memory_layout_that_changes_the_result_is_caught(self):
        @concept(title="T", source="S", example=lambda rng: example(rng.normal(size=(3, 4))))
        def flattening(x):
            return x.ravel(order="K"), lambda dout: dout.reshape(x.shape)

        assert not checks.strides(catalogue.concepts()["flattening"]).passed

    def test_a_rejection_that_is_accepted_or_unnamed_is_caught(self):
        @concept(**TOUR, rejects=[bad(power=-1)])
        def lenient(x, *, power=1):
            return x, lambda dout: dout

        @concept(**TOUR, rejects=[bad(power=-1)])
        def vague(x, *, power=1):
            if power < 0:
                raise ValueError("no")
            return x, lambda dout: dout

        assert "a bad value was accepted" in checks.rejections(catalogue.concepts()["lenient"]).message
        assert "does not name it" in checks.rejections(catalogue.concepts()["vague"]).message


def test_bad_puts_its_value_where_the_function_takes_it():
    def function(params, x, *, eps=1):
        pass

    made = bad(eps=3).spoil(function, example(1, 2))
    assert (made.args, made.config) == ((1, 2), {"eps": 3})
    made = bad("params.gain", params=7).spoil(function, example(1, 2))
    assert (made.args, made.config) == ((7, 2), {})
    with pytest.raises(ValueError, match="say which argument"):
        bad(a=1, b=2)


def test_invalid_says_which_what_and_wants():
    assert str(invalid("eps", got=-1, wants="a number that is not negative")) == "eps: got -1, wants a number that is not negative"


def test_find_suggests_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'rms_norm'"):
        catalogue.find("rmsnorm")
    with pytest.raises(ValueError, match="unknown norm 'linear'"):
        catalogue.find("linear", role="norm")


def test_every_entry_has_what_its_readers_need():
    for name, entry in catalogue.entries().items():
        made = entry.example(np.random.default_rng(0))
        assert isinstance(made.args, tuple) and isinstance(made.config, dict), name
        assert entry.module.startswith(f"minitransformers.{entry.chapter}."), name
        assert entry.function.__doc__, name


def test_every_form_is_a_form_of_something():
    entries = catalogue.entries()
    assert {entry.form_of for entry in entries.values()} - {None} <= entries.keys()


def test_a_concept_without_parameters_in_the_form_of_a_slot():
    both = slot(lambda x, y, *, factor=1: ((factor * x, y), lambda dout: (factor * dout[0], dout[1])))
    out, backward = both(None, 2, 3, factor=5)
    assert (out, backward((1, 1))) == ((10, 3), (None, 5, 1))
    assert slot(lambda x: (x, lambda dout: dout))(None, 2)[1](7) == (None, 7)


def test_importing_the_package_loads_no_concept_and_little_else():
    code = "import json, sys, minitransformers; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    heavy = {"scipy", "matplotlib", "tqdm", "autograd", "jaxtyping", "torch"} & {name.split(".")[0] for name in loaded}
    assert not heavy
    assert "minitransformers.basics" not in loaded

@pytest.mark.usefixtures("_clean_catalogue")
def test_parameters_in_a_slot_that_are_broadcast_are_found_by_their_gradient():
    @concept(**TOUR)
    def scales_anything(params: Any, x: Any):
        """params times x, of any shape."""
        return params * x, lambda dout: ((dout * x).sum(0), params * dout)

    x = np.ones((2, 3))
    out, backward = scales_anything(np.ones(3), x)
    assert backward(out)[0].shape == (3,)
    out, backward = scales_anything(np.ones(1), x)
    with pytest.raises(ValueError, match=re.escape("params: got shape (1,), wants (3,), to which it was broadcast")):
        backward(out)
