"""GGUF: what is written is read, blocks become the numbers that they stand for, and a damaged file never becomes weights."""

import struct
import tracemalloc

import numpy as np
import pytest
from gguf_files import f32, gguf, q4_1, q8_0

from minitransformers.models.gguf import KINDS, read_gguf

RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=(3, 64))
METADATA = [
    ("general.name", "str", "klein, 小"), ("a.u8", "u8", 255), ("a.i8", "i8", -3), ("a.u16", "u16", 65_535), ("a.i16", "i16", -300), ("a.u32", "u32", 2**32 - 1),
    ("a.i32", "i32", -70_000), ("a.f32", "f32", 0.5), ("a.yes", "bool", True), ("a.u64", "u64", 2**63), ("a.i64", "i64", -(2**40)), ("a.f64", "f64", 0.1),
    ("words", ["str"], ["", "Ġthe", "x"]), ("kinds", ["i32"], [3, -1, 1]), ("flags", ["bool"], [True, False]), ("rows", [["u16"]], [[1, 2], [], [3]]), ("none", ["f32"], []),
]  # fmt: skip
TENSORS = [
    ("plain", 0, (3, 64), f32(NUMBERS)), ("bytes", 8, (3, 64), q8_0(NUMBERS)), ("nibbles", 3, (3, 64), q4_1(NUMBERS)),
    ("half", 1, (3, 2, 5), np.arange(30, dtype="<f2").tobytes()), ("single", 0, (), f32(7.0)), ("empty", 8, (0, 32), b""),
]  # fmt: skip


@pytest.fixture
def read(tmp_path):
    """Write bytes, and read them as a GGUF file."""

    def reading(content):
        (tmp_path / "model.gguf").write_bytes(content)
        return read_gguf(tmp_path / "model.gguf")

    return reading


def listed(found):
    """Without NumPy's arrays."""
    return found.tolist() if isinstance(found, np.ndarray) else [listed(one) for one in found] if isinstance(found, list) else found


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_and_tensors_are_read_as_they_were_written(read, version):
    found = read(gguf(METADATA, TENSORS, version=version))
    assert list(found.metadata) == [key for key, _, _ in METADATA]
    for key, _, content in METADATA:
        own = found.metadata[key]
        assert type(own) is (np.ndarray if isinstance(content, list) and key not in ("words", "rows") else type(content))
        assert listed(own) == content
    assert found.metadata["kinds"].dtype == np.int32 and found.metadata["flags"].dtype == bool
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {name: shape for name, _, shape, _ in TENSORS}
    arrays = {name: tensor.dequantized() for name, tensor in found.tensors.items()}
    assert all(array.dtype == np.float32 and array.flags.writeable and array.flags.c_contiguous for array in arrays.values())
    np.testing.assert_array_equal(arrays["plain"], NUMBERS.astype(np.float32))
    np.testing.assert_array_equal(arrays["half"], np.arange(30).reshape(3, 2, 5))
    assert arrays["single"] == 7 and arrays["empty"].shape == (0, 32)


def test_the_alignment_is_the_files(read):
    found = read(gguf([("general.alignment", "u32", 64), ("x", "u8", 1)], TENSORS[:2], alignment=64))
    np.testing.assert_array_equal(found.tensors["plain"].dequantized(), NUMBERS.astype(np.float32))


# Blocks ---------------------------------------------------------------------------------------------------------------------


def block(kind, raw, shape=(32,)):
    return [("w", kind, shape, raw)]


def test_a_block_of_q8_0_by_hand(read):
    raw = struct.pack("<e", 0.5) + bytes(range(0, 16)) + bytes(range(240, 256))  # 240 to 255 are -16 to -1
    expected = [*(0.5 * i for i in range(16)), *(0.5 * i for i in range(-16, 0))]
    assert read(gguf((), block(8, raw))).tensors["w"].dequantized().tolist() == expected


def test_a_block_of_q4_1_by_hand(read):
    raw = struct.pack("<ee", 0.25, -2.0) + bytes(i | (15 - i) << 4 for i in range(16))  # the upper halves are weights 16 to 31
    expected = [*(0.25 * i - 2 for i in range(16)), *(0.25 * (15 - i) - 2 for i in range(16))]
    assert read(gguf((), block(3, raw))).tensors["w"].dequantized().tolist() == expected


def test_a_block_of_q4_0_by_hand(read):
    raw = struct.pack("<e", -0.5) + bytes(i | (15 - i) << 4 for i in range(16))
    expected = [*(-0.5 * (i - 8) for i in range(16)), *(-0.5 * (7 - i) for i in range(16))]
    assert read(gguf((), block(2, raw))).tensors["w"].dequantized().tolist() == expected


def test_bfloat16_is_the_upper_half_of_float32(read):
    numbers = np.array([1.0, -2.5, 3e38, 1e-40], np.float32)
    raw = (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()
    expected = (numbers.view(np.uint32) & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(read(gguf((), block(30, raw, (4,)))).tensors["w"].dequantized(), expected)


@pytest.mark.parametrize(("kind", "quantizer", "steps"), [(8, q8_0, 127), (3, q4_1, 7.5)])
def test_a_quantized_weight_is_at_most_half_a_step_off(read, kind, quantizer, steps):
    weights = RNG.normal(size=(40, 96 * 32))                 # more blocks than are worked on at a time
    own = read(gguf((), block(kind, quantizer(weights), weights.shape))).tensors["w"].dequantized()
    step = np.abs(weights).reshape(-1, 32).max(1) / steps
    assert (np.abs(own - weights).reshape(-1, 32) <= 0.52 * step[:, None] + 1e-3).all()
    assert np.abs(own - weights).max() > 1e-4


@pytest.mark.parametrize("number", KINDS)
def test_a_block_that_holds_inf_and_nan_is_read_without_a_warning(read, number):
    kind = KINDS[number]
    (own,) = read(gguf((), block(number, b"\xff\x7f" * (kind.bytes // 2) or b"", (kind.weights,)))).tensors.values()
    assert own.dequantized().shape == (kind.weights,)


@pytest.mark.parity
@pytest.mark.parametrize("number", KINDS)
def test_random_blocks_equal_the_reference(read, number):
    reference = pytest.importorskip("gguf")
    kind = KINDS[number]
    assert reference.GGMLQuantizationType(number).name == kind.name
    assert reference.GGML_QUANT_SIZES[reference.GGMLQuantizationType(number)] == (kind.weights, kind.bytes)
    rng = np.random.default_rng(1)
    blocks = rng.integers(256, size=(5000, kind.bytes), dtype=np.uint8)
    if kind.weights > 1:
        blocks[:, 1] &= 0xBB                                 # scales that are finite
        blocks[:, 3] &= 0xBB
    else:
        blocks[:, -1] &= 0x3B
    own = read(gguf((), block(number, blocks.tobytes(), (5000 * kind.weights,)))).tensors["w"].dequantized()
    flat = blocks.view(np.float32 if number == 0 else np.float16).ravel() if number < 2 else blocks
    theirs = reference.quants.dequantize(flat, reference.GGMLQuantizationType(number)).reshape(-1)
    assert np.isfinite(own).all()
    np.testing.assert_array_equal(own, theirs)


@pytest.mark.parity
def test_a_file_that_the_reference_writes_is_read(tmp_path):
    reference = pytest.importorskip("gguf")
    writer = reference.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "Ġb"])
    writer.add_layer_norm_rms_eps(1e-5)
    quantized = reference.quants.quantize(NUMBERS.astype(np.float32), reference.GGMLQuantizationType.Q8_0)
    writer.add_tensor("w", quantized, raw_dtype=reference.GGMLQuantizationType.Q8_0)
    writer.add_tensor("gain", np.ones(5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(tmp_path / "theirs.gguf")
    assert found.metadata["general.architecture"] == "llama" and found.metadata["tokenizer.ggml.tokens"] == ["a", "Ġb"]
    np.testing.assert_array_equal(found.tensors["w"].dequantized(), reference.quants.dequantize(quantized, reference.GGMLQuantizationType.Q8_0))
    assert found.tensors["gain"].shape == (5,)


# Bad files ------------------------------------------------------------------------------------------------------------------

W = ("w", 0, (2, 3), f32(np.ones((2, 3))))
BAD = {
    "empty": (b"", "is not a GGUF file: it starts with b''"),
    "another format": (b"\x80\x02}q\x00", r"is not a GGUF file: it starts with b'\\x80\\x02}q'"),
    "version": (gguf(version=1), "is a GGUF file of version 1; wants 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648, which is that of a big-endian file"),
    "head": (gguf((), [W])[:20], "cut off or damaged: the counts wants 8 bytes, of which 4 are there"),
    "metadata": (gguf(METADATA)[:60], "cut off or damaged: the metadata"),
    "many metadata": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "the key of metadata 0 wants 8 bytes"),
    "many tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "the name of tensor 0 wants 8 bytes"),
    "long text": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60), "the key of metadata 0 wants 1,152,921,504,606,846,976 bytes"),
    "not UTF-8": (gguf([(b"\xff", "u8", 1)]), "the key of metadata 0 is not UTF-8"),
    "type of metadata": (gguf([("x", 13, b"")]), "'x' are of type 13, which there is not"),
    "long array": (gguf([("x", 9, struct.pack("<IQ", 10, 2**61))]), "'x' wants 18,446,744,073,709,551,616 bytes"),
    "long list": (gguf([("x", 9, struct.pack("<IQ", 8, 2**61))]), "'x' should have 2,305,843,009,213,693,952 members"),
    "deep": (gguf([("x", [[[[[[[[[["u8"]]]]]]]]]], [[[[[[[[[[]]]]]]]]]])]), "'x' are nested too deeply"),
    "key twice": (gguf([("x", "u8", 1), ("x", "u8", 1)]), "'x' stand there twice"),
    "alignment": (gguf([("general.alignment", "u32", 0)]), "general.alignment is 0, wants a multiple of 8"),
    "tensor twice": (gguf((), [W, W]), "a tensor stands there twice"),
    "unknown type": (gguf((), [("blk.0.attn_q.weight", 12, (1, 256), bytes(144))]), r"'blk.0.attn_q.weight' of type 12, .* 3 \(Q4_1\), 8 \(Q8_0\)"),
    "blocks cut": (gguf((), [("w", 8, (2, 48), bytes(102))]), r"'w' has the shape \(2, 48\), which no tensor of type Q8_0 has"),
    "axes": (gguf((), [("w", 0, (1,) * 5, f32(1.0))]), "'w' has 5 axes, wants at most 4"),
    "vast": (gguf((), [("w", 0, (2**31, 2**31), b"")]), "'w' has the shape"),
    "vast and empty": (gguf((), [("w", 0, (0, 2**63), b"")]), "'w' has the shape"),
    "truncated": (gguf((), [W, ("v", 0, (9,), f32(np.ones(9)))])[:-40], "cut off or damaged: the tensor 'v' ends 68 bytes behind the head, where there are 56"),
    "offset": (gguf((), [W], offsets=[3200]), "the tensor 'w' ends 3,224 bytes"),
    "odd offset": (gguf((), [W], offsets=[4]), "the offset of the tensor 'w', 4, is no multiple of 32"),
    "overlap": (gguf((), [W, ("v", 0, (9,), f32(np.ones(9)))], offsets=[0, 0]), "0, lies within another tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_what_is_wrong_with_it(read, name):
    content, message = BAD[name]
    with pytest.raises(ValueError, match=message) as error:
        read(content)
    assert "model.gguf: " in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ValueError, match=rf"{path}: cannot be read"):
            read_gguf(path)


NUMBERS_IN_HEADS = [0, 1, 9, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]


def mutated(content, rng):
    """One to three changes, mostly in the head, where everything is told: a byte, a bit, a number, something cut out or put in; or the end is gone."""
    raw = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place, few = int(rng.integers(900 if rng.random() < 0.9 else len(content))), int(rng.integers(1, 20))
        change = rng.integers(5)
        if change == 0:
            raw[place : place + 1] = rng.bytes(1)
        elif change == 1:
            raw[place : place + 8] = struct.pack("<Q", NUMBERS_IN_HEADS[rng.integers(len(NUMBERS_IN_HEADS))])
        elif change == 2:
            raw[place : place + 4] = struct.pack("<I", rng.integers(40))
        elif change == 3:
            del raw[place : place + few]
        else:
            raw[place:place] = rng.bytes(few)
    return bytes(raw[: rng.integers(len(raw))] if rng.random() < 0.1 else raw)


def test_mutated_files_are_read_or_refused_and_nothing_large_is_made(read):
    content, rng, refused = gguf(METADATA, TENSORS), np.random.default_rng(3), 0
    tracemalloc.start()
    try:
        for _ in range(600):
            try:
                for tensor in read(mutated(content, rng)).tensors.values():
                    tensor.dequantized()
            except ValueError:
                refused += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 300 < refused < 600                               # and some changed no more than numbers
    assert peak < 1_000_000
