"""MiniLM with its real weights: the two cosines that its authors' code gives, and every hidden state beside transformers'."""

import json

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.foundation.safetensors import read_safetensors
from minitransformers.models.bert import Bert, bert
from minitransformers.models.minilm import NUM_HEADS, MiniLM, load_minilm, minilm_ids, minilm_vectors
from minitransformers.models.published import published_file
from minitransformers.models.tokenizers.wordpiece import wordpiece_encode

CAT, RUG, STOCKS = "The cat sits on the mat.", "A feline rests on a rug.", "Stock prices fell sharply today."
TEXTS = [CAT, RUG, STOCKS, "", "Ünïcode, 東京 and [SEP] in a text", "one " * 300]


@pytest.fixture(scope="module")
def model() -> MiniLM:
    try:
        return load_minilm()
    except ValueError as absent:
        pytest.skip(str(absent))


@pytest.mark.weights
def test_the_cosines_of_the_model_card(model):
    cat, rug, stocks = minilm_vectors([CAT, RUG, STOCKS], model=model)
    assert cat @ rug == pytest.approx(0.5584, abs=5e-5)
    assert cat @ stocks == pytest.approx(0.0556, abs=5e-5)


@pytest.mark.weights
def test_it_is_a_bert_of_six_layers(model):
    assert isinstance(model.params, Bert) and model.params.pooler is None
    assert len(model.params.blocks) == 6 and model.params.embedding.weight.shape == (30_522, 384)
    assert trees.count_parameters(model.params) == 22_565_376  # 22.7 million with the pooler, which is not read here
    configuration = json.loads(published_file("minilm", "configuration").read_text())
    assert configuration["num_attention_heads"] == NUM_HEADS
    assert (configuration["hidden_act"], configuration["layer_norm_eps"]) == ("gelu", 1e-12)


@pytest.mark.weights
def test_a_batch_of_unequal_texts_gives_what_each_gives_alone(model):
    together = minilm_vectors(TEXTS, model=model)
    assert together.shape == (6, 384) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=-1), 1, rtol=0, atol=1e-6)
    for text, vector in zip(TEXTS[:5], together, strict=False):
        np.testing.assert_allclose(minilm_vectors([text], model=model)[0], vector, rtol=0, atol=2e-6)
    np.testing.assert_allclose(minilm_vectors(TEXTS, model=model, batch=2), together, rtol=0, atol=2e-6)
    assert minilm_vectors([], model=model).shape == (0, 384)


@pytest.mark.weights
def test_ids_have_a_beginning_and_an_end_and_padding_behind(model):
    ids, real = minilm_ids([CAT, "mat", "mat " * 9], vocabulary=model.vocabulary, longest=8)
    assert ids.shape == (3, 8) and real.sum(axis=1).tolist() == [8, 3, 8]
    assert (ids[:, 0] == 101).all() and ids[1, :4].tolist() == [101, *wordpiece_encode("mat", vocabulary=model.vocabulary), 102, 0]
    assert ids[0, 7] == ids[2, 7] == 102                     # what is cut off, is cut off before the end
    assert not ids[~real].any()
    stranger, _ = minilm_ids(["[SEP]"], vocabulary=model.vocabulary)
    assert (stranger == 102).sum() == 1                      # a text that spells the token is a text


@pytest.mark.weights
@pytest.mark.parametrize(
    ("call", "message"), [({"batch": 0}, "batch: got 0"), ({"batch": True}, "batch: got True"), ({"longest": 2}, "longest: got 2")]
)
def test_what_makes_no_batch_is_refused(model, call, message):
    with pytest.raises(ValueError, match=message):
        minilm_vectors([CAT], model=model, **call)
    with pytest.raises(ValueError, match="texts: got none"):
        minilm_ids([], vocabulary=model.vocabulary)


@pytest.mark.weights
@pytest.mark.parity
def test_hidden_states_are_those_of_transformers(model):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    configuration = json.loads(published_file("minilm", "configuration").read_text())
    with torch.device("meta"):
        theirs = transformers.BertModel(transformers.BertConfig(**configuration, attn_implementation="eager"))
    weights = {name: torch.from_numpy(array) for name, array in read_safetensors(published_file("minilm", "weights"))[0].items()}
    theirs.load_state_dict({name: weights[name] for name in theirs.state_dict()}, assign=True)
    for buffer, value in (("position_ids", torch.arange(512)[None]), ("token_type_ids", torch.zeros(1, 512, dtype=torch.long))):
        setattr(theirs.embeddings, buffer, value)
    ids, real = minilm_ids(TEXTS[:5], vocabulary=model.vocabulary)
    own = bert(model.params, ids=ids, num_heads=NUM_HEADS, mask=real[:, None, None])[0].hidden
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(ids), attention_mask=torch.tensor(real.astype(int))).last_hidden_state.numpy()
    np.testing.assert_allclose(own[real], expected[real], rtol=0, atol=1e-4)


@pytest.mark.weights
@pytest.mark.parity
def test_ids_are_those_of_the_published_tokenizer(model):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(published_file("minilm", "tokenizer")))
    theirs.no_padding()
    theirs.no_truncation()
    for text in (CAT, RUG, STOCKS, "", "Ünïcode, 東京 unaffable don't 3.14", "one " * 100):
        assert minilm_ids([text], vocabulary=model.vocabulary)[0][0].tolist() == theirs.encode(text).ids
