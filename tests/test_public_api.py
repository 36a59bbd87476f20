"""The door: what ``from minitransformers import ...`` gives, what it loads, what help and type checkers say of it."""

import importlib
import inspect
import json
import pydoc
import re
import subprocess
import sys
import textwrap
import tomllib
import typing
from pathlib import Path

import numpy as np
import pytest

import minitransformers
from minitransformers import catalogue, names
from minitransformers.foundation import Backward

ENTRIES = catalogue.entries()


def loaded_by(statement):
    """The modules that a statement loads in a fresh Python."""
    program = f"import json, sys\nbefore = set(sys.modules)\n{statement}\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    return set(json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout))


def offered():
    """Name and value of all that can be imported from the top."""
    return {name: getattr(minitransformers, name) for name in minitransformers.__all__}


class TestNames:
    def test_the_stub_is_what_the_sources_say(self):
        stored = (names.PACKAGE / "__init__.pyi").read_text(encoding="utf-8")
        assert stored == names.stub(), "a concept has come or gone: run `python -m minitransformers.names`"

    def test_every_concept_and_procedure_is_here_with_its_init_and_step(self):
        for name, entry in ENTRIES.items():
            if name in catalogue.READING_ORDER:              # the chapter keeps its name
                assert inspect.ismodule(getattr(minitransformers, name))
            else:
                assert getattr(minitransformers, name) is entry.function
            if entry.init is not None:
                assert getattr(minitransformers, f"init_{name}") is entry.init
            if entry.step is not None:
                assert getattr(minitransformers, entry.step.__name__) is entry.step

    def test_types_of_parameters_are_here(self):
        assert {"RmsNorm", "MultiHeadAttention", "KeyValueCache", "MambaState", "T5Bias", "LanguageModelConfig"} <= set(dir(minitransformers))

    def test_completion_shows_concepts_types_inits_and_steps_and_no_helpers(self):
        shown = set(dir(minitransformers))
        assert shown == {*minitransformers.__all__, "__version__"}
        assert not shown & {"annotations", "importlib", "sys", "check_heads", "split_heads", "example_call", "invalid", "np"}
        for name in shown - ENTRIES.keys() - {name for _, name in names.BESIDES} - {"__version__"}:
            is_type = isinstance(getattr(minitransformers, name), type)
            assert is_type or name.startswith("init_") or name.endswith("_step"), name

    def test_the_tools_are_where_they_were(self):
        from minitransformers.foundation import gradients, trees

        assert minitransformers.check_gradients is gradients.check_gradients
        assert minitransformers.assert_gradients is gradients.assert_gradients
        assert (minitransformers.trees, minitransformers.catalogue) == (trees, catalogue)

    def test_everything_comes_with_a_star(self):
        found = {}
        exec("from minitransformers import *", found)
        assert set(minitransformers.__all__) <= found.keys()

    def test_a_wrong_name_is_refused(self):
        assert not hasattr(minitransformers, "rms_nrom")
        with pytest.raises(ImportError, match="rms_nrom"):
            from minitransformers import rms_nrom  # noqa: F401
        found = subprocess.run([sys.executable, "-c", "import minitransformers; minitransformers.rms_nrom"], capture_output=True, text=True)
        assert "module 'minitransformers' has no attribute 'rms_nrom'. Did you mean: 'rms_norm'?" in found.stderr


class TestTheStubOf:
    """The stub of other packages than ours."""

    @pytest.fixture
    def package(self, tmp_path):
        def write(**modules):
            for place, text in modules.items():
                path = tmp_path.joinpath(*place.split("__")).with_suffix(".py")
                path.parent.mkdir(exist_ok=True)
                path.write_text(textwrap.dedent(text))
            return tmp_path

        return write

    def test_a_chapter_keeps_its_name(self, package):
        text = names.stub(package(linear_attention__linear_attention="@concept(title='')\ndef linear_attention(x): ..."))
        assert "import linear_attention as" not in text
        assert "# linear_attention is a chapter: import what linear_attention computes from minitransformers.linear_attention.linear_attention\n" in text

    def test_helpers_and_modules_of_helpers_stay_inside(self, package):
        text = names.stub(package(
            basics__thing="""
                class Thing(NamedTuple): ...
                class Other: ...
                def init_thing(rng): ...
                init_other = init_thing
                def helper(x): ...
                def _private_step(x): ...
                @procedure(title="")
                def thing(x): ...
            """,
            basics__helpers="class Hidden(NamedTuple): ...\ndef init_hidden(): ...",
        ))  # fmt: skip
        assert re.findall(r"basics\S* import (\w+)", text) == ["Thing", "init_other", "init_thing", "thing"]

    def test_one_name_in_two_places_is_refused(self, package):
        one = "@concept(title='')\ndef {}(x): ...\nclass State(NamedTuple): ..."
        with pytest.raises(ValueError, match=r"State: got it from minitransformers\.basics\.a and minitransformers\.norms\.b"):
            names.stub(package(basics__a=one.format("a"), norms__b=one.format("b")))


class TestLoading:
    def test_the_package_alone_loads_nothing_of_its_own_and_no_numpy(self):
        found = loaded_by("import minitransformers")
        assert not [name for name in found if name.startswith("minitransformers.")]
        assert not found & {"numpy", "scipy", "jaxtyping", "ast", "inspect"}

    def test_a_concept_loads_no_other_chapter(self):
        found = loaded_by("from minitransformers import rope")
        chapters = {name.split(".")[1] for name in found if name.startswith("minitransformers.")} & set(catalogue.READING_ORDER)
        assert chapters == {"positional"}
        assert "minitransformers.positional.alibi" not in found
        assert "scipy" not in found

    def test_completion_loads_nothing(self):
        assert "numpy" not in loaded_by("import minitransformers; assert 'rope' in dir(minitransformers)")


class TestModulesOfConcepts:
    def test_called_in_the_place_of_its_concept_it_says_what_to_import(self):
        from minitransformers.positional import rope

        with pytest.raises(TypeError, match=r"minitransformers\.positional\.rope is the module of rope.*: from minitransformers import rope$"):
            rope(np.ones((3, 4)))

    def test_it_remains_a_module(self):
        import minitransformers.positional.rope as module

        assert inspect.ismodule(module) and module is sys.modules["minitransformers.positional.rope"]
        assert module.rope is minitransformers.rope

    def test_what_the_error_says_is_true(self):
        for name, entry in ENTRIES.items():
            module = sys.modules[entry.module]
            if entry.module.endswith(f".{name}") and name not in catalogue.READING_ORDER:
                with pytest.raises(TypeError) as found:
                    module()
                scope = {}
                exec(str(found.value).partition(": ")[2], scope)
                assert scope[name] is entry.function

    def test_modules_of_helpers_are_as_they_were(self):
        for name in ("attention.heads", "attention.masks", "foundation.trees"):
            assert not callable(importlib.import_module(f"minitransformers.{name}"))

    def test_a_slot_refuses_it_by_name(self):
        from minitransformers.attention import sparsemax

        params = minitransformers.init_multi_head_attention(np.random.default_rng(0), 4, num_heads=2)
        with pytest.raises(ValueError, match="core: got <module 'minitransformers"):
            minitransformers.multi_head_attention(params, np.ones((3, 4), np.float32), num_heads=2, core=sparsemax)


class TestHelp:
    def test_help_begins_with_the_equations(self):
        lines = pydoc.render_doc(minitransformers.rms_norm, renderer=pydoc.plaintext).splitlines()
        assert lines[2].startswith("rms_norm(params: ")
        assert re.fullmatch(r" +rms = sqrt\(mean_i x_i\^2 \+ eps\) +\(1\)", lines[3])
        assert "    Divide the last axis by its root mean square, then scale by gain + offset." in lines

    @pytest.mark.parametrize("name", ENTRIES)
    def test_equations_come_first_and_the_docstring_after_them(self, name):
        function = ENTRIES[name].function
        shown, own, equations = inspect.getdoc(function), inspect.getdoc(inspect.unwrap(function)), catalogue.equations(function.__module__)
        assert shown.endswith(own)
        before = shown.removesuffix(own)
        assert [line.strip() for line in before.strip().splitlines()] == [line.strip() for line in equations.splitlines()]

    def test_every_numbered_equation_of_the_header_is_shown(self):
        for entry in ENTRIES.values():
            header = sys.modules[entry.module].__doc__
            assert re.findall(r"^ {4,}\S.*(\(\d+\))$", header, re.MULTILINE) == re.findall(
                r"(\(\d+\))$", catalogue.equations(entry.module), re.MULTILINE
            ), entry.name


class TestAnnotations:
    def test_every_function_says_what_it_returns(self):
        for name, value in offered().items():
            if inspect.isfunction(value):
                assert inspect.signature(value).return_annotation is not inspect.Signature.empty, name

    @pytest.mark.parametrize("name", catalogue.concepts())
    def test_a_concept_returns_what_it_says(self, name):
        entry = ENTRIES[name]
        out_type, backward_type = typing.get_args(typing.get_type_hints(entry.function)["return"])
        example = entry.example(np.random.default_rng(0))
        out, _ = entry.function(*example.args, **example.config)
        assert backward_type == Backward
        self.assert_is(out, out_type)

    def assert_is(self, out, hint):
        if typing.get_origin(hint) is tuple:
            parts = typing.get_args(hint)
            if parts[-1] is Ellipsis:
                parts = parts[:1] * len(out)
            assert type(out) is tuple and len(out) == len(parts)
            for part, part_hint in zip(out, parts, strict=True):
                self.assert_is(part, part_hint)
        elif isinstance(hint, type) and (hasattr(hint, "_fields") or hint is np.floating):
            assert isinstance(out, hint)
        elif hint is not typing.Any:
            assert isinstance(out, np.ndarray if not isinstance(hint, type) or hasattr(hint, "dim_str") else hint)

    def test_the_package_is_marked_as_typed(self):
        assert (names.PACKAGE / "py.typed").is_file()

    @pytest.mark.slow
    def test_a_type_checker_follows_a_program_and_finds_its_mistakes(self, tmp_path, monkeypatch):
        api = pytest.importorskip("mypy.api", reason="mypy is not installed")
        program = textwrap.dedent("""
            import numpy as np
            from minitransformers import init_multi_head_attention, init_rms_norm, multi_head_attention, rms_norm, rope
            rng = np.random.default_rng(0)
            normed, backward = rms_norm(init_rms_norm(rng, 8), rng.normal(size=(3, 8)), eps=1e-5)
            out, _ = multi_head_attention(init_multi_head_attention(rng, 8, num_heads=2), normed, num_heads=2)
            turned, turned_back = rope(out, base=100.0)
        """)
        monkeypatch.chdir(tmp_path)  # outside the repository, whose settings are not a user's
        monkeypatch.setenv("MYPYPATH", str(names.PACKAGE.parent))
        Path("right.py").write_text(program)
        Path("wrong.py").write_text(f'{program}rope("three")\nreveal_type(out)\nfrom minitransformers import rms_nrom\n')
        options = ["--follow-imports=silent", "--cache-dir=cache", "--config-file="]
        found, errors, status = api.run([*options, "--strict", "right.py"])
        assert status == 0, found + errors
        found, _, status = api.run([*options, "wrong.py"])
        assert status == 1
        assert re.search(r'"rope" has incompatible type "str"; expected "ndarray', found)
        assert re.search(r'Revealed type is "numpy\.ndarray', found)
        assert 'has no attribute "rms_nrom"' in found and "Found 2 errors" in found


def test_who_looks_for_the_package_finds_it():
    project = tomllib.loads((names.PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert len(project["urls"]) > 1 and len(project["keywords"]) > 3
    assert "Typing :: Typed" in project["classifiers"]
