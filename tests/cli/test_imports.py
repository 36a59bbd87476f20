"""Starting is cheap: what only some commands need is imported by those."""

import subprocess
import sys

HEAVY = ("scipy", "matplotlib", "tqdm", "autograd", "torch", "hypothesis")


def loaded_by(statement, *, of=HEAVY):
    program = f"import sys\n{statement}\nprint(*(name for name in {of!r} if name in sys.modules))"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_package_is_lean():
    assert loaded_by("import minitransformers") == []
    assert loaded_by("import minitransformers", of=("numpy", "jaxtyping", "minitransformers.foundation")) == []


def test_importing_the_command_is_lean():
    assert loaded_by("import minitransformers.cli.main") == []


def test_importing_the_chapter_reporter_is_lean():
    assert loaded_by("import minitransformers.reporting.run") == []
