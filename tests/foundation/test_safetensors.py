import json
import struct

import numpy as np
import pytest

from minitransformers.foundation.atomic import write_atomically
from minitransformers.foundation.safetensors import read_metadata, read_safetensors, write_safetensors

DTYPES = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8, np.bool_]


def some_arrays():
    rng = np.random.default_rng(0)
    arrays = {f"of.{np.dtype(dtype)}": (10 * rng.normal(size=(3, 5))).astype(np.int8).astype(dtype) for dtype in DTYPES}
    arrays |= {"scalar": np.array(2.5), "empty": np.zeros((0, 3), np.float32), "odd": np.arange(7, dtype=np.uint8)}
    arrays |= {"transposed": rng.normal(size=(2, 3)).T, "strided": rng.normal(size=9)[::2], "big-endian": np.arange(3.0).astype(">f4")}
    return arrays


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype.newbyteorder("=") == theirs[name].dtype.newbyteorder("="), name
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name, strict=False)
        assert ours[name].shape == theirs[name].shape, name


def test_what_is_written_is_read(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", some_arrays(), metadata={"größe": "zwölf"})
    arrays, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert_same(arrays, some_arrays())
    assert metadata == read_metadata(tmp_path / "a.safetensors") == {"größe": "zwölf"}
    arrays["scalar"][...] = 3  # the caller's own


def test_the_reference_reads_our_files(tmp_path):
    reference = pytest.importorskip("safetensors.numpy")
    write_safetensors(tmp_path / "a.safetensors", some_arrays(), metadata={"a": "b"})
    assert_same(reference.load_file(tmp_path / "a.safetensors"), some_arrays())
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert file.metadata() == {"a": "b"}


def test_we_read_the_files_of_the_reference(tmp_path):
    reference = pytest.importorskip("safetensors.numpy")
    wanted = {name: np.array(array, order="C", dtype=array.dtype.newbyteorder("=")) for name, array in some_arrays().items()}
    reference.save_file(wanted, tmp_path / "a.safetensors", metadata={"a": "b"})
    arrays, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert_same(arrays, wanted)
    assert metadata == {"a": "b"}


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    header = json.dumps({"x": entry(dtype="BF16", shape=(3,), offsets=(0, 6))}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<3H", 0x3F80, 0xC020, 0x7F80))
    np.testing.assert_array_equal(read_safetensors(path)[0]["x"], np.array([1.0, -2.5, np.inf], np.float32), strict=True)


@pytest.mark.parity
def test_bfloat16_is_read_as_torch_reads_it(tmp_path):
    torch, reference = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    values = torch.tensor([1.0, -2.5, 3.1415926, 1e30, float("inf"), 0.0]).to(torch.bfloat16)
    reference.save_file({"x": values}, tmp_path / "a.safetensors")
    array = read_safetensors(tmp_path / "a.safetensors")[0]["x"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, values.float().numpy())


def test_arrays_start_at_multiples_of_their_item_size(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", some_arrays())
    raw = (tmp_path / "a.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    assert size % 8 == 0
    for name, entry in json.loads(raw[8 : 8 + size]).items():
        assert entry["data_offsets"][0] % some_arrays()[name].dtype.itemsize == 0, name


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"x": np.arange(6.0), "y": np.arange(3, dtype=np.int16)}, metadata={"a": "b"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.safetensors: is not a whole \.safetensors file"):
            read_safetensors(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match=r"should take 54 bytes, but 55 follow"):
        read_safetensors(path)


def test_damaged_files_never_raise_anything_but_value_error(tmp_path):
    path, rng = tmp_path / "a.safetensors", np.random.default_rng(1)
    write_safetensors(path, {"x": np.arange(6.0), "yy": np.arange(3, dtype=np.int16)}, metadata={"a": "b"})
    whole, refused = bytearray(path.read_bytes()), 0
    for _ in range(1000):
        damaged = whole.copy()
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(whole) - 54)] = rng.integers(256)  # the header only: numbers have no checksum
        path.write_bytes(damaged)
        try:
            read_safetensors(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 800


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        ({"x": entry(), "y": entry(offsets=(4, 12))}, 12, "y starts at 4, but the array before it ends at 8"),  # overlap
        ({"x": entry(), "y": entry(offsets=(12, 20))}, 20, "y starts at 12"),  # gap
        ({"x": entry(shape=(3,))}, 8, r"x has 8 bytes, but F32 of shape \[3\] takes 12"),
        ({"x": entry(offsets=(8, 0))}, 8, "x has -8 bytes"),
        ({"x": entry(dtype="F8_E4M3")}, 8, "dtype 'F8_E4M3'"),
        ({"x": entry(dtype=["F32"])}, 8, "dtype"),
        ({"x": entry(shape=(-2,))}, 8, "no whole numbers"),
        ({"x": entry(shape=(2.0,))}, 8, "no whole numbers"),
        ({"x": entry(shape=(True, 2))}, 8, "no whole numbers"),
        ({"x": entry(more=1)}, 8, "no whole numbers"),
        ({"x": entry(shape=(0, 2**70), offsets=(0, 0))}, 0, "no array can have"),
        ({"x": entry(shape=(0, 2**62), offsets=(0, 0))}, 0, "no array can have"),  # NumPy counts without the empty axis
        ({"x": entry(dtype="BF16", shape=(2**61, 0), offsets=(0, 0))}, 0, "no array can have"),
        ({"x": entry(shape=(2**40, 2**40), offsets=(0, 2**82))}, 8, "no array can have"),
        ({"x": entry(shape=(2**62,), offsets=(0, 2**64))}, 8, "no array can have"),
        ({"x": entry(shape=(0,) * 65, offsets=(0, 0))}, 0, "no array can have"),
        ({"x": entry(shape=(10**4000,) * 64)}, 8, "no array can have"),
        ({"x": entry(offsets=(2**64, 2**64 + 8))}, 8, "x has offsets beyond the 8 bytes"),
        ({"x": entry(offsets=(0, 10**4200))}, 8, "x has offsets beyond the 8 bytes"),
        (b'{"x":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % (b"9" * 5000), 8, "not JSON"),
        (b'{"x":{"dtype":%s,"shape":[2],"data_offsets":[0,8]}}' % (b"[" * 800 + b"]" * 800), 8, "dtype"),
        ({"x\ud800": entry()}, 8, r"'x\\ud800' is no name: it holds half a surrogate pair"),
        ({"\udfff": entry()}, 8, "half a surrogate pair"),
        ({"__metadata__": {"a": "\ud800"}}, 0, "__metadata__ is not a map of text"),
        ({"__metadata__": {"\ud800": "a"}}, 0, "__metadata__ is not a map of text"),
        ({"x": {"dtype": "F32"}}, 8, "wants a dtype, a shape and two data_offsets"),
        ({"x": 3}, 8, "wants a dtype"),
        ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
        ([1, 2], 0, "not a JSON object"),
        (b"{]", 0, "not JSON"),
        (b"\xff\xfe", 0, "not JSON"),
        (b"[" * 100_000, 0, "not JSON"),
        (b'{"__metadata__":{},"__metadata__":{}}', 0, "a name stands twice"),
    ],
)
def test_wrong_headers_are_refused(tmp_path, header, size, message):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    with pytest.raises(ValueError, match=message) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 500


def test_a_whole_surrogate_pair_is_a_character(tmp_path):
    header = b'{"\\ud83d\\ude00":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert list(read_safetensors(tmp_path / "a.safetensors")[0]) == ["\U0001f600"]


@pytest.mark.parametrize("metadata", [None, {"a": "\ud800"}, {"\ud800": "a"}, {"a": 1}, {1: "a"}])
def test_text_that_utf_8_does_not_have_is_not_written(tmp_path, metadata):
    arrays = {"x" if metadata else "x\ud800": np.ones(2)}
    with pytest.raises(ValueError, match=r"^(metadata: got|arrays: got the name)"):
        write_safetensors(tmp_path / "a.safetensors", arrays, metadata=metadata)
    assert not list(tmp_path.iterdir())


def test_an_enormous_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ValueError, match="the header should have"):
        read_safetensors(path)


def test_missing_files_and_unknown_dtypes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.safetensors: cannot be read"):
        read_safetensors(tmp_path / "gone.safetensors")
    for wrong in (np.ones(2, complex), np.array(["a"]), np.array([None])):
        with pytest.raises(ValueError, match="x: got"):
            write_safetensors(tmp_path / "a.safetensors", {"x": wrong})
    with pytest.raises(ValueError, match="__metadata__"):
        write_safetensors(tmp_path / "a.safetensors", {"__metadata__": np.ones(2)})
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, [b"old"])

    def failing():
        yield b"new"
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError):
        write_atomically(path, failing())
    assert path.read_bytes() == b"old" and [child.name for child in tmp_path.iterdir()] == ["a.bin"]
