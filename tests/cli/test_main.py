"""What becomes of output and of errors: consoles that are not UTF-8, pipes, full disks, Ctrl-C."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minitransformers.cli.parser import make_parser

FULL = Path("/dev/full")
SHELL = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


def environment(**changes):
    """As a user has it: nothing set for the streams."""
    ours = ("PYTHONIOENCODING", "PYTHONUNBUFFERED")
    return {**{name: value for name, value in os.environ.items() if name not in ours}, **changes}


def command(*arguments, encoding=None, buffered=True, **settings):
    """The command in a process of its own."""
    chosen = {"PYTHONIOENCODING": encoding} if encoding else {}
    unbuffered = {} if buffered else {"PYTHONUNBUFFERED": "1"}
    program = [sys.executable, "-m", "minitransformers", *map(str, arguments)]
    return subprocess.run(program, **{"capture_output": True, "timeout": 60, "env": environment(**chosen, **unbuffered), **settings})


def shell(line):
    line = line.replace("minitransformers", f"{sys.executable} -m minitransformers")
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, env=environment())


def test_the_bare_command_is_help_on_stdout(run):
    found, asked = run(), run("--help")
    assert (found.status, found.err) == (0, "")
    assert found.out == asked.out and "generate" in found.out


# Consoles that are not UTF-8 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "encoding"),
    [
        (("list",), "ascii"), (("list",), "cp1252"), (("list", "--json"), "ascii"), (("check", "rope", "causal_mask"), "ascii"), (("show", "rope"), "ascii"),
        (("bench", "rope"), "ascii"), (("train", "--help"), "ascii"),
    ],
    ids=str,
)  # fmt: skip
def test_a_console_that_cannot_show_a_character_shows_another(arguments, encoding):
    found = command(*arguments, encoding=encoding)
    assert (found.returncode, found.stderr) == (0, b"")
    text = found.stdout.decode(encoding)
    if "--json" in arguments:
        assert json.loads(text)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize("options", [(), ("--json",)], ids=["report", "json"])
def test_a_chapter_too(encoding, options, small_repository):
    section = small_repository / "chapters" / "norms" / "forgets.py"
    section.write_text(section.read_text().replace("it is relative", "α → ☃ holds"), "utf-8")
    program = (
        "import sys; from pathlib import Path; from minitransformers.cli import repository; from minitransformers.cli.main import main;"
        f"repository.root = lambda: Path({str(small_repository)!r}); sys.exit(main(sys.argv[1:]))"
    )
    process = [sys.executable, "-c", program, "run", "norms", "--quick", *options]
    found = subprocess.run(process, capture_output=True, env=environment(PYTHONIOENCODING=encoding), timeout=60)
    assert found.returncode == 0, found.stderr
    text = found.stdout.decode(encoding)
    assert "? ? ? holds" in text
    if options:
        assert json.loads(text)["norms"]["claims"][0]["verdict"] == "exact"


def test_what_a_user_chose_for_such_characters_stays():
    assert b"\\xb5" in command("bench", "linear", encoding="ascii:backslashreplace").stdout


@SHELL
@pytest.mark.parametrize("line", ["minitransformers list softmax >&-", "minitransformers list softmax 2>&-", "minitransformers show softmax >&- 2>&-"])
def test_a_stream_that_is_closed_is_no_error(line):
    found = shell(line)
    assert found.returncode == 0 and found.stderr == ""


@SHELL
def test_an_error_is_not_printed_to_stdout_where_stderr_is_closed():
    found = shell("minitransformers foo 2>&-")
    assert (found.returncode, found.stdout) == (2, "")


# Pipes and disks --------------------------------------------------------------------------------------------------------


@SHELL
@pytest.mark.parametrize("arguments", ["list", "list --json", "--help"])
def test_a_reader_that_stops_early_is_no_error(arguments):
    for reader in ("head -1", "true"):
        found = shell(f"minitransformers {arguments} | {reader}; exit ${{PIPESTATUS[0]}}")
        assert found.stderr == "" and found.returncode in (0, 141)


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("list", "--json"), ("show", "rope"), ("--version",)], ids=" ".join)
@pytest.mark.parametrize("buffered", [True, False])
def test_a_disk_that_is_full_is_one_line(arguments, buffered):
    with FULL.open("wb") as full:
        found = command(*arguments, buffered=buffered, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert found.returncode == 2
    assert found.stderr.decode() in ("minitransformers: No space left on device\n", "minitransformers: standard output: No space left on device\n")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_where_nothing_can_be_said_the_exit_code_says_it():
    with FULL.open("wb") as full:
        assert command("foo", capture_output=False, stdout=full, stderr=full).returncode == 2
        assert command("list", capture_output=False, stdout=full, stderr=full).returncode == 2


# Ctrl-C -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["argparse", "numpy", "minitransformers.cli.concepts"])
def test_ctrl_c_while_modules_are_imported_is_quiet(module):
    program = (
        "import sys\n"
        "class CtrlC:\n"
        "  def find_spec(self, name, path=None, target=None):\n"
        f"    if name == {module!r}: print('here', file=sys.stderr); raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, CtrlC())\n"
        "from minitransformers.cli.main import main\n"
        "sys.exit(main(['list']))\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "here\n")


# Two dashes -------------------------------------------------------------------------------------------------------------


def options():
    """Every option of every command that takes a value."""
    (commands,) = (action for action in make_parser()._actions if hasattr(action, "_name_parser_map"))
    for name, parser in commands._name_parser_map.items():
        for action in parser._actions:
            if action.option_strings and action.nargs is None:
                yield name, action.option_strings[-1]


TEXTS = {"--check", "--prompt", "--text", "--out", "--mixer", "--stack", "--channel", "--norm", "--position", "--chapter", "--role", "--option", "--stop"}


def test_two_dashes_as_the_value_of_an_option_are_its_value(refuses, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    every = list(options())
    assert len(every) > 30
    for name, option in every:
        if option not in TEXTS:
            line = refuses(name, f"{option}=--")
            assert option in line and "--'" in line, line
    found = make_parser().parse_args(["generate", "x", "--prompt=--", "--stop=--"])
    assert (found.prompt, found.stop) == ("--", ["--"])
    for option in ("--mixer", "--stack", "--norm", "--position", "--option", "--text"):
        assert "'--'" in (line := refuses("train", f"{option}=--")) or "--: " in line, line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("list", "--", "--"), ("show", "--", "--"), ("show", "--"), ("train", "--steps", "--"), ("train", "--quick=--")])
def test_two_dashes_elsewhere_are_one_line(run, arguments):
    found = run(*arguments)
    assert found.status == 2 and found.out == "" and found.err.count("\n") == 1
