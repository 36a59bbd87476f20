"""Whisper out of CTranslate2's flat file: what is written here is read, and whatever is damaged or of another model is refused by name."""

import struct

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.models.whisper import init_whisper
from minitransformers.models.whisper_ctranslate2 import load_whisper_ctranslate2, read_ctranslate2

CODES = {"<f4": 0, "i1": 1, "<i2": 2, "<i4": 3, "<f2": 4}


def text(value):
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def file_of(tmp_path, arrays, *, version=6, kind="WhisperSpec", second=(), end=b""):
    """The format a second time, as a writer."""
    content = struct.pack("<I", version) + text(kind) + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        code = next(code for form, code in CODES.items() if np.dtype(form) == array.dtype)
        content += text(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape) + struct.pack("<BI", code, array.nbytes)
        content += array.tobytes()
    content += struct.pack("<I", len(second)) + b"".join(text(a) + text(b) for a, b in second) + end
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    return path


def stacked(*parts):
    return np.concatenate([part.weight.T for part in parts]), np.concatenate([np.zeros(len(part.weight)) if part.bias is None else part.bias for part in parts])


def arrays_of(params):
    """A Whisper under CTranslate2's names, in float16."""
    e, d = params
    found = {"encoder/num_heads": np.array(2), "decoder/num_heads": np.array(2), "decoder/pre_norm": np.array(1), "decoder/activation": np.array(3)}

    def put(name, weight, bias):
        found.update({f"{name}/weight": weight, f"{name}/bias": bias})

    def norm(name, p):
        found.update({f"{name}/gamma": p.gain, f"{name}/beta": p.bias})

    for name, p in (("conv1", e.conv1), ("conv2", e.conv2)):
        put(f"encoder/{name}", p.weight.reshape(3, -1, p.weight.shape[1]).transpose(2, 1, 0), p.bias)
    found.update({"encoder/position_encodings/encodings": e.positions.table, "decoder/position_encodings/encodings": d.positions.table})
    found["decoder/embeddings/weight"] = d.embedding.weight
    for stack, tree in (("encoder", e), ("decoder", d)):
        norm(f"{stack}/layer_norm", tree.norm)
        for i, b in enumerate(tree.blocks):
            start = f"{stack}/layer_{i}"
            norm(f"{start}/self_attention/layer_norm", b.attention_norm)
            put(f"{start}/self_attention/linear_0", *stacked(*b.attention[:3]))
            put(f"{start}/self_attention/linear_1", *stacked(b.attention.output))
            if stack == "decoder":
                norm(f"{start}/attention/layer_norm", b.cross_attention_norm)
                put(f"{start}/attention/linear_0", *stacked(b.cross_attention.query))
                put(f"{start}/attention/linear_1", *stacked(*b.cross_attention[1:3]))
                put(f"{start}/attention/linear_2", *stacked(b.cross_attention.output))
            norm(f"{start}/ffn/layer_norm", b.feed_forward_norm)
            put(f"{start}/ffn/linear_0", *stacked(b.feed_forward.up))
            put(f"{start}/ffn/linear_1", *stacked(b.feed_forward.down))
    return {name: np.array(array, "<f2" if np.ndim(array) else "<i2", order="C") for name, array in found.items()}


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    sizes = {"vocabulary": 7, "d_model": 4, "num_layers": 2, "num_heads": 2, "mels": 3, "d_hidden": 5, "places": 6, "context": 8}
    params = init_whisper(rng, **sizes)
    return trees.map(lambda leaf: (leaf + rng.normal(size=leaf.shape)).astype(np.float16).astype(np.float32), params)


TIED = (("decoder/projection/weight", "decoder/embeddings/weight"),)


@pytest.mark.parametrize("second", [(), TIED], ids=["no second name", "the head by its second name"])
def test_a_whisper_is_read(params, tmp_path, second):
    read, num_heads = load_whisper_ctranslate2(file_of(tmp_path, arrays_of(params), second=second))
    trees.map(np.testing.assert_array_equal, read, params)
    assert num_heads == 2
    assert all(leaf.dtype == np.float32 and leaf.flags.c_contiguous for _, leaf in trees.leaves(read))


def test_all_kinds_of_numbers_are_read(tmp_path):
    arrays = {form.strip("<"): np.arange(6).astype(form).reshape(2, 3) for form in CODES} | {"one": np.array(3, "<i4")}
    kind, read = read_ctranslate2(file_of(tmp_path, arrays, kind="Other", second=[("again", "f4")]))
    assert kind == "Other" and list(read) == [*arrays, "again"]
    for name, array in read.items():
        np.testing.assert_array_equal(array, arrays["f4" if name == "again" else name])
        assert array.dtype == arrays["f4" if name == "again" else name].dtype


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.update({"decoder/activation": np.array(0, "<i2")}), "decoder/activation is 0, wants 3"),
        (lambda a: a.update({"decoder/pre_norm": np.array(0, "<i2")}), "decoder/pre_norm is 0, wants 1"),
        (lambda a: a.update({"decoder/num_heads": np.array(4, "<i2")}), "has 2 numbers of heads"),
        (lambda a: [a.pop("decoder/num_heads"), a.pop("encoder/num_heads")], "has 0 numbers of heads"),
        (lambda a: a.pop("decoder/layer_1/ffn/linear_0/bias"), r"missing model\.decoder\.layers\.1\.fc1\.bias"),
        (lambda a: a.update({"decoder/layer_1/other/weight": np.ones((1, 1), "<f2")}), r"unexpected model\.decoder\.layers\.1\.other/weight"),
        (lambda a: a.update({"encoder/other": np.ones((1, 1), "<f2")}), r"unexpected model\.encoder\.other"),
        (lambda a: a["encoder/layer_0/self_attention/linear_0/bias"].__setitem__(slice(4, 8), 1), "a bias of keys that is not 0"),
        (lambda a: a.update({"encoder/layer_0/self_attention/linear_0/bias": np.ones(11, "<f2")}), "of shape \\(11,\\), wants 3 equal parts"),
        (lambda a: a.update({"decoder/embeddings/weight": np.ones((7, 3), "<f2")}), r"shape"),
    ],
)
def test_another_model_is_refused_and_the_file_named(params, tmp_path, spoil, message):
    arrays = arrays_of(params)
    spoil(arrays)
    with pytest.raises(ValueError, match=message) as caught:
        load_whisper_ctranslate2(file_of(tmp_path, arrays))
    assert str(caught.value).startswith(f"{tmp_path / 'model.bin'}: ") and "\n" not in str(caught.value)


ONE = {"x": np.arange(6, dtype="<f4").reshape(2, 3)}


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"version": 5}, None, "is no file of CTranslate2 of version 6: it begins with 5"),
        ({"kind": "TransformerSpec"}, None, "is a TransformerSpec, wants a WhisperSpec"),
        ({"end": b"!"}, None, "goes on behind its last name"),
        ({"second": [("y", "z")]}, None, "y: is a second name of z, which is not there"),
        ({"second": [("x", "x")]}, None, "x: is a second name of x"),
        ({}, (b"\x00\x18\x00\x00\x00", b"\x09\x18\x00\x00\x00"), "x: has numbers of kind 9"),
        ({}, (b"\x00\x18\x00\x00\x00", b"\x00\x14\x00\x00\x00"), "x: stands there twice, or has 20 bytes for shape"),
        ({}, (b"x\0", b"\xff\0"), "has a name that is none"),
        ({}, (b"x\0", b"xy"), "has a name that is none"),
    ],
)
def test_a_damaged_file_is_refused_and_named(tmp_path, settings, change, message):
    path = file_of(tmp_path, ONE, **settings)
    if change:
        content = path.read_bytes()
        assert content.count(change[0]) == 1
        path.write_bytes(content.replace(*change))
    with pytest.raises(ValueError, match=message) as caught:
        load_whisper_ctranslate2(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_is_cut_off_anywhere_or_not_there_is_refused(tmp_path):
    whole = file_of(tmp_path, ONE, second=[("y", "x")]).read_bytes()
    for end in range(len(whole)):
        (tmp_path / "cut.bin").write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"cut\.bin: is cut off"):
            read_ctranslate2(tmp_path / "cut.bin")
    with pytest.raises(ValueError, match=r"absent\.bin: cannot be read: No such file"):
        read_ctranslate2(tmp_path / "absent.bin")
