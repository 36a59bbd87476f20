"""train and generate: the happy paths at tiny sizes, and every mistake that a caller can make."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from minitransformers.foundation import atomic
from minitransformers.foundation.safetensors import write_safetensors
from minitransformers.training import checkpoint
from minitransformers.training.checkpoint import load_checkpoint
from minitransformers.training.loop import CHECKPOINT

TEXT = "the cat sat on the mat. the dog sat on the log. " * 20
SIZES = ("--layers", 1, "--heads", 2, "--width", 8, "--context", 8, "--batch", 2, "--steps", 4)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def train(run, text, tmp_path):
    return lambda *options: run("train", "--text", text, *SIZES, "--out", tmp_path / "run", *options)


@pytest.fixture
def refuses_to_train(refuses, text, tmp_path):
    def refused(*options):
        line = refuses("train", "--text", text, *SIZES, "--out", tmp_path / "run", *options)
        assert not (tmp_path / "run").exists()
        return line

    return refused


@pytest.fixture
def model(train, tmp_path, capfd):
    """The folder of a trained model."""
    assert train().status == 0
    return tmp_path / "run"


def rewrite(model, change, change_state=lambda state: None):
    """Change the parameters or the state of a checkpoint and give it the fingerprint of what it then holds."""
    loaded = load_checkpoint(model / CHECKPOINT)
    change(loaded.arrays)
    change_state(loaded.state)
    state = json.dumps(loaded.state)
    metadata = {"format": checkpoint._FORMAT, "state": state, "sha256": checkpoint._fingerprint(loaded.arrays, state)}
    write_safetensors(model / CHECKPOINT, loaded.arrays, metadata=metadata)


def test_train_reports_and_writes_a_checkpoint(train, tmp_path):
    found = train()
    assert found.status == 0, found.err
    assert re.search(r"^validation +\d\.\d{3} bits a character", found.out, re.MULTILINE)
    assert (tmp_path / "run" / CHECKPOINT).is_file()
    assert f"minitransformers generate {tmp_path / 'run'} --prompt=the\n" in found.out


def test_train_as_json(train):
    report = json.loads(train("--json").out)
    assert report["steps"] == 4
    assert report["parameters"] > 0
    assert 0 < report["validation"] < 10


@pytest.mark.parametrize(
    "options",
    [
        ("--mixer", "grouped_query_attention", "--option", "mixer.num_kv_heads=1", "--norm", "rms_norm", "--position", "rope"),
        ("--channel", "gated_feed_forward", "--position", "sinusoidal", "--placement", "post"),
        ("--placement", "deep", "--fix-norm", "--option", "mixer.prepare=qk_norm"),
        ("--position", "none", "--vocabulary", "byte", "--dropout", "0.1"),
        ("--threads", "2", "--dropout", "0.1"),
        ("--warmup", "0", "--clip", "0.5", "--weight-decay", "0", "--learning-rate", "1e-2", "--seed", "3"),
    ],
    ids=["llama", "post-norm", "deep-norm", "bytes", "threads", "training"],
)
def test_parts_and_settings_are_chosen_by_name(train, run, tmp_path, options):
    assert train(*options).status == 0
    found = run("generate", tmp_path / "run", "--prompt", "the", "--tokens", 5)
    assert found.status == 0
    assert found.out.startswith("the")


def test_the_same_seed_trains_the_same_model(run, text, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("train", "--text", text, *SIZES, "--seed", seed, "--out", tmp_path / name).status == 0
    a, b, c = (load_checkpoint(tmp_path / name / CHECKPOINT).arrays["parameters.embedding.weight"] for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_a_run_that_is_there_is_not_overwritten_but_resumed(train, tmp_path):
    assert train().status == 0
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    again = train()
    assert (again.status, again.out) == (2, "")
    assert "resume" in again.err
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before
    assert train("--resume").status == 0


def test_parts_can_be_chosen_down_to_the_head(train):
    assert train("--untied", "--scale-embedding", "--position", "sinusoidal", "--placement", "post", "--threads", 2).status == 0


def test_a_checkpoint_that_is_older_than_a_setting_is_resumed_and_read(train, run, model):
    path = model / CHECKPOINT
    loaded = load_checkpoint(path)
    del loaded.state["config"]["task"]["model"]["fix_norm"]
    loaded.state["step"] = 3                                 # one step is left
    del loaded.state["history"][3:]
    state = json.dumps(loaded.state)
    metadata = {"format": checkpoint._FORMAT, "state": state, "sha256": checkpoint._fingerprint(loaded.arrays, state)}
    write_safetensors(path, loaded.arrays, metadata=metadata)
    assert run("generate", model, "--prompt", "the", "--tokens", 2).status == 0
    other = train("--resume", "--fix-norm")
    assert other.status == 2 and "fix_norm is False there and True here" in other.err
    found = train("--resume")
    assert found.status == 0, found.err
    assert load_checkpoint(path).state["config"]["task"]["model"]["fix_norm"] is False


def test_resume_refuses_another_configuration(train, tmp_path):
    assert train().status == 0
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    again = train("--resume", "--width", "16")
    assert again.status == 2
    assert "d_model is 8 there and 16 here" in again.err and again.err.count("\n") == 1
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mixer", "multi_head_atention"), "unknown mixer 'multi_head_atention'; did you mean 'multi_head_attention'"),
        (("--norm", "linear"), "unknown norm 'linear'"),
        (("--position", "ropes"), "did you mean 'rope'"),
        (("--placement", "middle"), "--placement"),
        (("--fix-norm", "--untied"), "fix_norm: got a head of its own"),
        (("--option", "mixer.prepare=qknorm"), "unknown prepare 'qknorm'; did you mean 'qk_norm'"),
        (("--option", "mixer.prepare=true"), "options.mixer.prepare: got True, wants the name of a concept"),
        (("--heads", "3"), "num_heads: got 3"),
        (("--width", "-8"), "--width: got -8"),
        (("--layers", "0"), "--layers: got 0"),
        (("--context", "two"), "--context: got 'two'"),
        (("--batch", "-1"), "--batch"),
        (("--steps", "0"), "--steps"),
        (("--warmup", "5"), "--warmup: got 5"),
        (("--learning-rate", "0"), "learning_rate: got 0"),
        (("--learning-rate", "nan"), "learning_rate: got nan"),
        (("--weight-decay", "-1"), "weight_decay: got -1"),
        (("--clip", "0"), "clip: got 0"),
        (("--std", "-1"), "std: got -1"),
        (("--dropout", "1"), "dropout: got 1"),
        (("--seed", "-1"), "--seed: got -1"),
        (("--vocabulary", "word"), "--vocabulary"),
        (("--option", "mixer.num_kv_heads"), "--option: got 'mixer.num_kv_heads'"),
        (("--option", "loss.scale=1"), "--option: got 'loss.scale=1'"),
        (("--option", "mixer.windows=3"), "options.mixer.windows"),
        (("--option", "mixer.causal=false"), "options.mixer.causal: multi_head_attention has no such option"),
        (("--option", "mixer.bias=true"), "options.mixer.bias"),
        (("--option", "channel.d_hidden=abc"), "options.channel.d_hidden: got 'abc', wants a whole number of at least 1"),
        (("--option", "norm.eps=null"), "eps: got None, wants"),
        (("--mixer", "sliding_window_attention", "--option", "mixer.window=0"), "window: got 0"),
        (("--mixer", "grouped_query_attention", "--option", "mixer.num_kv_heads=3"), "num_kv_heads: got 3"),
        (("--context", "2000"), "too short"),
        (("--threads", "3"), "--threads: got 3"),
        (("--steps=--",), "--steps: got '--'"),
        (("--learning-rate=--",), "--learning-rate: invalid float value: '--'"),
        (("--option=--",), "--option: got '--'"),
        (("--option", "mixer.x=" + "[" * 9000), "--option mixer.x: got '[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[['… with 9000 brackets"),
        (("--option", "channel.d_hidden=" + "[" * 980 + "]" * 980), "--option channel.d_hidden: got '[["),
        (("--option", "channel.d_hidden=" + "[" * 90 + "]" * 9), "options.channel.d_hidden: got '[["),
        (("--option", "mixer.prepare=" + '{"a":' * 980 + "1" + "}" * 980), "--option mixer.prepare: got '{"),
        (("--option", "norm.eps=NaN"), "--option norm.eps: got 'NaN', wants finite numbers"),
        (("--option", "norm.eps=1e999"), "--option norm.eps: got '1e999', wants finite numbers"),
        (("--option", "norm.eps=" + "9" * 5000), "--option norm.eps: got '999"),
        (("--out=",), "--out: wants the name of a folder"),
        (("--out", "run\udcff"), "--out: wants the name of a folder"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_train_refuses(refuses_to_train, options, message):
    assert message in refuses_to_train(*options)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "empty"), (b"caf\xe9 " * 100, "UTF-8: byte 0xe9 at offset 3"), (b"short", "too short")],
    ids=["missing", "empty", "latin-1", "short"],
)
def test_train_refuses_a_text(refuses, tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    line = refuses("train", "--text", path, *SIZES, "--out", tmp_path / "run")
    assert str(path) in line and message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_is_one_line_and_the_checkpoint_is_as_it_was(train, model, monkeypatch, call):
    rewrite(model, lambda arrays: None, lambda state: (state.update(step=3), state["history"].pop()))  # one step is left
    before = {path.name: path.read_bytes() for path in model.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    found = train("--resume")
    assert (found.status, found.out) == (2, "") and "Traceback" not in found.err
    assert found.err.splitlines()[-1] == f"minitransformers: {model / CHECKPOINT}: No space left on device"
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


@pytest.mark.skipif(atomic.fcntl is None, reason="this system has no locks on folders")
@pytest.mark.parametrize("options", [(), ("--resume",)])
def test_a_second_run_in_one_folder_is_refused_in_one_line_and_a_killed_one_is_in_nobodys_way(train, tmp_path, options):
    folder = tmp_path / "run"
    folder.mkdir()
    program = "import sys, time; from minitransformers.foundation.atomic import sole_writer\nwith sole_writer(sys.argv[1]): print(); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True) as first:
        first.stdout.readline()
        second = train(*options)
        assert (second.status, second.out) == (2, "")
        assert second.err == f"minitransformers: {folder}: another run is training here: wait until it ends, or choose another folder\n"
        assert list(folder.iterdir()) == []
        first.kill()
    assert train(*options).status == 0
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_cannot_show_a_character_of_the_text_shows_another(tmp_path, encoding):
    (tmp_path / "text.txt").write_text("☃ → α β γ. 日本 " * 40, encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for arguments in (["train", "--text", "text.txt", *map(str, SIZES), "--out", "run"], ["generate", "run", "--prompt", "☃ →", "--tokens", "20"]):
        command = [sys.executable, "-m", "minitransformers", *arguments]
        found = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path, timeout=60)
        assert found.returncode == 0, found.stderr
        assert "?" in found.stdout.decode(encoding)


def test_a_diverged_run_says_so_in_its_last_line(train):
    found = train("--learning-rate", "1e9", "--clip", "1e30", "--steps", "50")
    assert found.status == 2
    assert found.err.splitlines()[-1].startswith("minitransformers: the training diverged: ")
    assert "Traceback" not in found.err


def test_out_cannot_be_a_file(refuses, text, tmp_path):
    (tmp_path / "taken").write_text("precious")
    refuses("train", "--text", text, *SIZES, "--out", tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "precious"


def test_generate_continues_the_prompt_by_so_many_characters(run, model):
    found = run("generate", model, "--prompt", "the cat", "--tokens", 20, "--top-k", 5, "--top-p", 0.9)
    assert found.status == 0
    assert found.out.startswith("the cat") and len(found.out) == len("the cat") + 20 + 1


def test_generate_stops_before_a_text(run, model):
    options = ("generate", model, "--prompt", "the cat", "--tokens", 40, "--temperature", 0)
    whole = run(*options).out.removesuffix("\n")
    stop = whole[15:18]
    assert run(*options, "--stop", stop).out == whole[: whole.index(stop, len("the cat"))] + "\n"


def test_min_p_and_the_penalty_choose_among_tokens(run, model):
    options = ("generate", model, "--prompt", "the", "--tokens", 30)
    coldest = run(*options, "--temperature", 0).out
    assert run(*options, "--min-p", 1).out == coldest, "only what is as probable as the likeliest is left"
    assert run(*options, "--temperature", 0, "--repetition-penalty", 1000).out != coldest


def test_generate_depends_on_the_seed_alone(run, model):
    texts = [run("generate", model, "--prompt", "the", "--tokens", 30, "--seed", seed).out for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_the_cache_changes_nothing(run, model):
    options = ("generate", model, "--prompt", "the", "--tokens", 30, "--temperature", 0)
    assert run(*options).out == run(*options, "--no-cache").out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--top-p", "0"), "top_p: got 0"),
        (("--top-p", "1.5"), "top_p: got 1.5"),
        (("--min-p", "2"), "--min-p: got 2, wants a number above 0 and at most 1"),
        (("--repetition-penalty", "0"), "--repetition-penalty: got 0"),
        (("--stop", ""), "--stop: got no text"),
        (("--top-k", "0"), "top_k: got 0"),
        (("--temperature", "-1"), "temperature: got -1"),
        (("--temperature", "nan"), "temperature: got nan"),
        (("--tokens", "-1"), "--tokens: got -1"),
        (("--prompt", ""), "--prompt: got no text"),
        (("--prompt=--",), "--prompt: text: got '-' (U+002D) at character 0"),
        (("--prompt", "a\udcff"), "--prompt: text: got '\\udcff' (U+DCFF) at character 1"),
        (("--prompt", "a cat ☃"), "--prompt: text: got '☃' (U+2603) at character 6"),
    ],
)
def test_generate_refuses(refuses, model, options, message):
    assert message in refuses("generate", model, "--prompt", "the", *options)


def test_generate_wants_one_model(refuses, model):
    assert "got neither, wants a CHECKPOINT or --model" in refuses("generate", "--prompt", "the")
    assert "got both, wants a CHECKPOINT or --model" in refuses("generate", model, "--model", "smollm2", "--prompt", "the")
    assert "--model" in refuses("generate", "--model", "gpt5", "--prompt", "the")
    assert "--prompt: got no text" in refuses("generate", "--model", "smollm2", "--prompt", "")


def test_generate_refuses_what_is_no_checkpoint(refuses, tmp_path):
    assert "cannot be read" in refuses("generate", tmp_path / "nothing", "--prompt", "the")
    (tmp_path / "text").write_text(TEXT)
    assert "not a whole .safetensors file" in refuses("generate", tmp_path / "text", "--prompt", "the")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_checkpoint_is_refused_and_left_alone(refuses, train, model, keep):
    path = model / CHECKPOINT
    cut = path.read_bytes()[:keep]
    path.write_bytes(cut)
    assert str(path) in refuses("generate", model, "--prompt", "the")
    assert train("--resume").status == 2
    assert path.read_bytes() == cut


def test_a_flipped_bit_is_noticed(refuses, model):
    path = model / CHECKPOINT
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert "is damaged" in refuses("generate", model, "--prompt", "the")


def test_a_checkpoint_that_does_not_say_what_it_holds_is_refused(refuses, model):
    rewrite(model, lambda arrays: None, lambda state: state["config"]["task"].pop("model"))
    assert "does not say what model it holds" in refuses("generate", model, "--prompt", "the")


@pytest.mark.timeout(30)
def test_a_checkpoint_that_describes_more_than_it_holds_is_refused_at_once(refuses, model):
    rewrite(model, lambda arrays: None, lambda state: state["config"]["task"]["model"].update(num_layers=1_000_000_000))
    line = refuses("generate", model, "--prompt", "the")
    assert line == f"minitransformers: {model / CHECKPOINT}: num_layers: got 1000000000, wants the 1 layers whose parameters are there\n"


@pytest.mark.parametrize(
    ("field", "value"), [("step", None), ("step", -1), ("seconds", "1"), ("counted", None), ("random", []), ("history", None), ("history", [None] * 4)]
)
def test_a_state_that_no_run_can_have_is_refused_by_file_and_field(run, train, model, field, value):
    rewrite(model, lambda arrays: None, lambda state: state.update({field: value}))
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    found = train("--resume")
    assert (found.status, found.out) == (2, "")
    assert re.fullmatch(rf"minitransformers: {re.escape(str(model / CHECKPOINT))}: {field}(\.0)?: got .*, wants .*\n", found.err)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


@pytest.mark.parametrize("state", ["{", "[]", "[" * 50_000])
def test_a_state_that_is_no_object_is_refused(refuses, model, state):
    loaded = load_checkpoint(model / CHECKPOINT)
    metadata = {"format": checkpoint._FORMAT, "state": state, "sha256": checkpoint._fingerprint(loaded.arrays, state)}
    write_safetensors(model / CHECKPOINT, loaded.arrays, metadata=metadata)
    assert f"{model / CHECKPOINT}: state: " in refuses("generate", model, "--prompt", "the")


def drop(arrays):
    del arrays["parameters.final_norm.gain"]


def add(arrays):
    arrays["parameters.blocks.7.mixer"] = np.ones(3, np.float32)


def reshape(arrays):
    arrays["parameters.embedding.weight"] = arrays["parameters.embedding.weight"][:, :-1].copy()


@pytest.mark.parametrize(
    ("change", "message"),
    [(drop, "missing: final_norm.gain"), (add, "unexpected: blocks.7.mixer"), (reshape, "wrong shape: embedding.weight")],
)
def test_weights_that_do_not_fit_are_named(refuses, model, change, message):
    rewrite(model, change)
    assert message in refuses("generate", model, "--prompt", "the")


def test_ctrl_c_while_training_is_quiet_and_leaves_a_checkpoint_whole(text, tmp_path):
    command = [sys.executable, "-m", "minitransformers", "train", "--text", text, *SIZES, "--steps", "40000", "--out", tmp_path / "run"]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # The bar appears where training begins.
    while "step" not in (seen := process.stderr.read(20)):
        assert seen, "it ended before it began"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in errors
