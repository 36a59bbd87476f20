"""PyTorch's first file format: arrays come out as PyTorch gives them, and a pickle that wants anything else is refused by name, and not run."""

import collections
import os
import pickle

import numpy as np
import pytest
from torch_files import EMPTY_DICT, HEAD, name, number, numbers, storages, tensor, whole, word

from minitransformers.models.torch_file import read_torch_file

KINDS = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2",
         "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?"}  # fmt: skip

def file_of(tmp_path, content):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    return path


DATA = np.random.default_rng(0).normal(size=12).astype(np.float32)
TABLE = tensor("a", "FloatStorage", 12, shape=(3, 4), strides=(4, 1))
WHOLE = whole({"table": TABLE}, {"a": DATA})


# --- what is read -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_number_is_read(kind, tmp_path):
    data = np.arange(6).astype(KINDS[kind])
    read = read_torch_file(file_of(tmp_path, whole({"x": tensor("s", kind, 6, shape=(2, 3), strides=(3, 1))}, {"s": data})))
    assert read["x"].dtype == data.dtype
    np.testing.assert_array_equal(read["x"], data.reshape(2, 3))


def test_tensors_are_views_and_arrays_are_not(tmp_path):
    tensors = {
        "rows": TABLE,
        "columns": tensor("a", "FloatStorage", 12, shape=(4, 3), strides=(1, 4)),
        "part": tensor("a", "FloatStorage", 12, first=5, shape=(2, 2), strides=(4, 1)),
        "one": tensor("a", "FloatStorage", 12, first=11, shape=(), strides=()),
        "none": tensor("b", "FloatStorage", 0, shape=(0, 3), strides=(3, 1)),
    }
    build = b"}" + word("_metadata") + EMPTY_DICT + b"sb"
    read = read_torch_file(file_of(tmp_path, whole(tensors, {"a": DATA, "b": DATA[:0]}, build=build)))
    table = DATA.reshape(3, 4)
    expected = {"rows": table, "columns": table.T, "part": table[1:, 1:3], "one": table[2, 3], "none": np.zeros((0, 3), np.float32)}
    assert list(read) == list(expected)
    for key, array in read.items():
        np.testing.assert_array_equal(array, expected[key])
        assert array.flags.owndata and array.flags.writeable and array.flags.c_contiguous
    read["rows"][:] = 0
    np.testing.assert_array_equal(read["columns"], table.T)  # an array of its own


def test_the_order_of_storages_is_that_of_their_list(tmp_path):
    other = DATA[::-1].copy()
    tensors = {"one": TABLE, "two": tensor("b", "FloatStorage", 12, shape=(12,), strides=(1,))}
    read = read_torch_file(file_of(tmp_path, whole(tensors, {"b": other, "a": DATA})))
    np.testing.assert_array_equal(read["two"], other)
    np.testing.assert_array_equal(read["one"], DATA.reshape(3, 4))


@pytest.mark.parity
def test_what_pytorch_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    state = module.state_dict()
    state["turned"] = state["0.weight"].t()
    state["half"] = torch.arange(5).half()
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    read = read_torch_file(tmp_path / "old.bin")
    assert list(read) == list(state)
    for key, array in read.items():
        np.testing.assert_array_equal(array, state[key].numpy())
        assert array.dtype == state[key].numpy().dtype
    torch.save(state, tmp_path / "new.bin")
    with pytest.raises(ValueError, match=r"new\.bin: is a zip archive"):
        read_torch_file(tmp_path / "new.bin")


# --- what is refused --------------------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(marker):
    """Programs that would leave the marker if anything were run, and how each of them is refused."""
    touch = Evil(os.mkdir, str(marker))
    for protocol in range(6):
        yield f"protocol {protocol}", HEAD + pickle.dumps({"x": touch}, protocol), "is not run"
    yield "first of all", pickle.dumps(touch, 2), r"asks for (posix|nt)\.mkdir"
    yield "as a name of the dict", HEAD + pickle.dumps({touch: 1}, 2), r"asks for (posix|nt)\.mkdir"
    yield "in the list of storages", WHOLE[: -len(storages({"a": DATA}))] + pickle.dumps([touch], 2), r"asks for (posix|nt)\.mkdir"
    yield "among the machine's sizes", HEAD[: HEAD.index(b"\x80\x02}")] + pickle.dumps({"little_endian": touch}, 2), r"asks for (posix|nt)\.mkdir"
    yield "eval", whole({"x": name("builtins", "eval") + b"(" + word(f"__import__('os').mkdir({str(marker)!r})") + b"tR"}, {}), r"asks for builtins\.eval"
    yield "another function of torch", whole({"x": name("torch.hub", "load") + b")R"}, {}), r"asks for torch\.hub\.load"
    yield "a name in a name", whole({"x": name("collections", "OrderedDict.fromkeys") + b")R"}, {}), r"asks for collections\.OrderedDict\.fromkeys"
    yield "an instance", whole({"x": b"(" + word(str(marker)) + b"iposix\nmkdir\n"}, {}), "opcode INST, which is not needed"
    yield "an object", whole({"x": name("collections", "OrderedDict") + b")\x81"}, {}), "opcode NEWOBJ, which is not needed"
    yield "an extension", whole({"x": b"\x82\x01"}, {}), "opcode EXT1, which is not needed"


@pytest.mark.parametrize("which", range(16))
def test_what_would_be_run_is_refused_by_name_and_is_not_run(which, tmp_path):
    every = list(attacks(tmp_path / "ran"))
    assert len(every) == 16
    about, content, message = every[which]
    with pytest.raises(ValueError, match=message) as caught:
        read_torch_file(file_of(tmp_path, content))
    assert not (tmp_path / "ran").exists(), about
    assert str(caught.value).startswith(str(tmp_path / "model.bin")) and "\n" not in str(caught.value)


def test_the_marker_would_be_there_if_it_were_run(tmp_path):
    """The control of the test above: Python's own reader runs it."""
    pickle.loads(pickle.dumps({"x": Evil(os.mkdir, str(tmp_path / "ran"))}, 2))
    assert (tmp_path / "ran").exists()


def view(first, shape, strides, size=12):
    return whole({"x": tensor("a", "FloatStorage", size, first=first, shape=shape, strides=strides)}, {"a": DATA})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (view(1, (3, 4), (4, 1)), "x: lies outside its storage of 12 numbers"),
        (view(0, (13,), (1,)), "x: lies outside its storage"),
        (view(0, (2,), (12,)), "x: lies outside its storage"),
        (view(0, (2**31 - 1,), (0,)), "x: lies outside its storage"),
        (view(0, (3, 4), (4,)), "a shape that none has"),
        (view(-1, (1,), (1,)), "a shape that none has"),
        (view(0, (-1,), (1,)), "a shape that none has"),
        (view(11, (2,), (-1,)), "a shape that none has"),
        (view(0, (1,) * 33, (1,) * 33), "a shape that none has"),
        (view(0, (3, 4), (4, 1), size=-1), "no storage"),
        (view(0, (3,), (1,), size=11), "has 12 numbers in a storage of 11"),
        (whole({"x": TABLE, "y": tensor("a", "FloatStorage", 11, shape=(1,), strides=(1,))}, {"a": DATA}), "two things of the storage a"),
        (whole({"x": TABLE}, {"b": DATA}), "has 1 storages, and its tensors want 1, or others"),
        (whole({"x": TABLE}, {}), "has 0 storages, and its tensors want 1"),
        (whole({"x": number(3)}, {}), "something else than a dict of tensors"),
        (HEAD + pickle.dumps([1], 2) + storages({}), "something else than a dict of tensors"),
        (whole({"x": TABLE}, {"a": DATA}) + b"!", "goes on behind its last storage"),
        (HEAD + b"\x80\x02" + EMPTY_DICT + number(3) + number(4) + b"s." + storages({}), "keys that are no names"),
        (HEAD + b"\x80\x02" + EMPTY_DICT + b"(" + word("x") + b"u." + storages({}), "keys that are no names"),
        (HEAD + b"\x80\x02N" + EMPTY_DICT + b".", "leaves something on the stack"),
        (HEAD + b"\x80\x02" + EMPTY_DICT + number(3) + b"b.", "does with a int what is done with a dict"),
        (HEAD + b"\x80\x02" + EMPTY_DICT + number(3) + b"a.", "does with a dict what is done with a list"),
        (HEAD + b"\x80\x02" + name("collections", "OrderedDict") + numbers([3]) + b"R.", "calls collections.OrderedDict in a way"),
        (HEAD + b"\x80\x02" + number(3) + b")R.", "calls what is no function"),
        (HEAD + b"\x80\x02h\x07.", "is damaged"),
        (HEAD + b"\x80\x02t.", "is damaged"),
        (HEAD.replace(b"\x88", b"\x89") + WHOLE[len(HEAD) :], "little-endian"),
        (HEAD.replace(b"M\xe9\x03", b"M\xea\x03") + WHOLE[len(HEAD) :], "does not begin as a file of PyTorch"),
        (pickle.dumps({"x": 3}, 2), "does not begin as a file of PyTorch"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"", "model.bin: "),
        (b"not a pickle", "model.bin: "),
        (b"\x00\x01", "model.bin: "),
    ],
)  # fmt: skip
def test_what_is_no_dict_of_tensors_is_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        read_torch_file(file_of(tmp_path, content))
    assert str(caught.value).startswith(str(tmp_path / "model.bin")) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.bin: cannot be read: No such file"):
        read_torch_file(tmp_path / "absent.bin")


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path):
    for end in range(len(WHOLE)):
        with pytest.raises(ValueError, match="model"):
            read_torch_file(file_of(tmp_path, WHOLE[:end]))


def test_a_file_with_wrong_bytes_is_read_or_refused_and_nothing_else(tmp_path):
    rng, refused = np.random.default_rng(0), collections.Counter()
    for _ in range(600):
        content = bytearray(WHOLE[: -DATA.nbytes])           # what is left of it are numbers, of which any are right
        for at in rng.integers(len(content), size=rng.integers(1, 4)):
            content[at] = rng.integers(256)
        try:
            read = read_torch_file(file_of(tmp_path, bytes(content) + DATA.tobytes()))
            assert all(isinstance(array, np.ndarray) for array in read.values())
            refused[False] += 1
        except ValueError as error:
            assert "\n" not in str(error)
            refused[True] += 1
    assert refused[True] > 300 and refused[False] > 10
