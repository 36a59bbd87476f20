"""The label: it registers, refuses what is incomplete or taken, and changes nothing in the function."""

import json
import subprocess
import sys

import numpy as np
import pytest

from minitransformers import catalogue
from minitransformers.foundation import bad, checks, concept, example, invalid

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
    for name, entry in catalogue.concepts().items():
        made = entry.example(np.random.default_rng(0))
        assert isinstance(made.args, tuple) and isinstance(made.config, dict), name
        assert entry.module.endswith(f"{entry.chapter}.{name}"), name
        assert entry.function.__doc__, name


def test_importing_the_package_loads_no_concept_and_little_else():
    code = "import json, sys, minitransformers; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    heavy = {"scipy", "matplotlib", "tqdm", "autograd", "jaxtyping", "torch"} & {name.split(".")[0] for name in loaded}
    assert not heavy
    assert "minitransformers.basics" not in loaded
