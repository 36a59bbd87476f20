"""The Mamba over bytes with its real weights: beside a plain loop, beside its ONNX file, and on texts of many kinds."""

import byte_mamba_loop as naive
import numpy as np
import pytest

from minitransformers import trees
from minitransformers.models.byte_mamba import byte_mamba, byte_mamba_weights
from minitransformers.models.published import published_file
from minitransformers.models.text_kinds import ByteModel, byte_ids, kind_probabilities, load_byte_model, text_segments

TEXTS = {
    "python": "def f(x):\n    return [i ** 2 for i in range(x)]\n\nclass A:\n    pass\n",
    "sql": "SELECT name, age FROM people WHERE age > 40 ORDER BY name;\n",
    "html": "<html><body><h1>Title</h1><p class='a'>One</p></body></html>\n",
    "json": '{"a": [1, 2, 3], "b": {"c": null, "d": "text"}}\n',
    "shell": '#!/bin/sh\nfor f in *.txt; do\n  echo "$f" | sed \'s/a/b/\'\ndone\n',
    "c_family": '#include <stdio.h>\nint main(void) { printf("%d\\n", 3); return 0; }\n',
    "rust": 'fn main() {\n    let mut v: Vec<i32> = Vec::new();\n    v.push(3);\n    println!("{:?}", v);\n}\n',
    "css": ".btn { background: #3498db; color: white; padding: 8px 12px; }\n",
}


@pytest.fixture(scope="module")
def model() -> ByteModel:
    try:
        return load_byte_model()
    except ValueError as absent:
        pytest.skip(str(absent))


@pytest.mark.parametrize(("text", "ids"), [("a\t\n\r ~", [97, 9, 10, 13, 32, 126]), ("é\x00\x7f", [128, 128, 128, 128]), ("語", [128] * 3), ("", [])])
def test_bytes_that_are_no_visible_ascii_are_one(text, ids):
    assert byte_ids(text).tolist() == ids


@pytest.mark.weights
def test_what_is_written_is_the_published_file(model):
    weights = byte_mamba_weights(model.params)
    with np.load(published_file("byte_mamba", "weights")) as archive:
        assert weights.keys() == set(archive.files)
        for name, array in weights.items():
            np.testing.assert_array_equal(array, archive[name], err_msg=name)
            assert array.dtype == archive[name].dtype


@pytest.mark.weights
def test_it_has_six_blocks_and_35_kinds(model):
    assert trees.count_parameters(model.params) == 1_364_035 and len(model.params.blocks) == 6
    assert model.params.embedding.weight.shape == (130, 256) and model.params.head.bias.shape == (35,) == (len(model.kinds),)
    assert set(TEXTS) | {"text", "markdown", "encoding_hex"} <= set(model.kinds)


@pytest.mark.weights
@pytest.mark.parametrize("kind", TEXTS)
def test_texts_of_many_kinds_are_told(model, kind):
    probabilities = kind_probabilities(TEXTS[kind], model=model)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=0, atol=1e-5)
    assert model.kinds[probabilities.mean(axis=0).argmax()] == kind
    assert probabilities.mean(axis=0).max() > 0.7
    assert [part.kind for part in text_segments(TEXTS[kind], model=model)] == [kind]


@pytest.mark.weights
def test_a_text_of_several_kinds_is_cut_where_they_change(model):
    whole = TEXTS["python"] + TEXTS["sql"] + TEXTS["html"]
    parts = text_segments(whole, model=model)
    assert [part.start for part in parts] == [0, *(part.end for part in parts[:-1])] and parts[-1].end == len(whole)
    for kind in ("python", "sql", "html"):
        start, end = whole.index(TEXTS[kind]), whole.index(TEXTS[kind]) + len(TEXTS[kind])
        told = sum(min(part.end, end) - max(part.start, start) for part in parts if part.kind == kind and part.start < end and part.end > start)
        assert told > 0.9 * len(TEXTS[kind])


@pytest.mark.weights
def test_a_character_has_the_mean_of_its_bytes(model):
    probabilities = kind_probabilities("a語b", model=model)
    assert probabilities.shape == (3, 35)
    scores = byte_mamba(model.params, ids=byte_ids("a語b"))[0].astype(float)
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, [expected[0], expected[1:4].mean(axis=0), expected[4]], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="text: got an empty text"):
        kind_probabilities("", model=model)


@pytest.mark.weights
def test_logits_are_those_of_a_plain_loop_in_float64(model):
    double = trees.cast(model.params, np.float64)
    for text in (TEXTS["html"], "Über 語"):
        own = byte_mamba(model.params, ids=byte_ids(text))[0]
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, naive.loop(double, byte_ids(text)), rtol=0, atol=1e-4)


@pytest.mark.weights
@pytest.mark.parity
def test_logits_are_those_of_the_onnx_file(model):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(published_file("byte_mamba", "onnx")), providers=["CPUExecutionProvider"])
    wants = session.get_inputs()[0]
    for text in TEXTS.values():
        ids = byte_ids(text).astype(np.int32 if "int32" in wants.type else np.int64)
        expected = session.run(None, {wants.name: ids[None] if len(wants.shape) == 2 else ids})[0]
        np.testing.assert_allclose(byte_mamba(model.params, ids=byte_ids(text))[0], np.reshape(expected, (len(ids), 35)), rtol=0, atol=1e-4)
