"""A writer of PyTorch's first file format, opcode by opcode: files that PyTorch writes, and files that nobody should."""

import pickle
import struct

HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)


def word(text):
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


EMPTY_DICT = name("collections", "OrderedDict") + b")R"


def tensor(key, kind, size, *, first=0, shape, strides):
    storage = b"(" + word("storage") + name("torch", kind) + word(key) + word("cpu") + number(size) + b"NtQ"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + number(first) + numbers(shape) + numbers(strides) + b"\x89" + EMPTY_DICT + b"tR"


def storages(arrays):
    return pickle.dumps(list(arrays), 2) + b"".join(struct.pack("<q", array.size) + array.tobytes() for array in arrays.values())


def whole(tensors, arrays, *, head=HEAD, build=b""):
    items = b"".join(word(key) + said for key, said in tensors.items())
    return head + b"\x80\x02" + EMPTY_DICT + b"(" + items + b"u" + build + b"." + storages(arrays)


def torch_file(arrays):
    """A dict of arrays as PyTorch keeps it, each in a storage of its own, rows one after the other."""
    kinds = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<f8": "DoubleStorage"}
    flat = {str(i): array.ravel() for i, array in enumerate(arrays.values())}
    said = {
        name: tensor(str(i), kinds[array.dtype.str], array.size, shape=array.shape, strides=[s // array.itemsize for s in array.strides])
        for i, (name, array) in enumerate(arrays.items())
    }
    return whole(said, flat)
