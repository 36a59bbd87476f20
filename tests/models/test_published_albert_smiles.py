"""ALBERT over chemical reactions with its real weights: what it fills gaps with, and every logit beside transformers'; SMILES in tokens."""

import json

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.models.albert import Albert, albert, albert_weights
from minitransformers.models.molecules import SETTINGS, MoleculeModel, fill_gaps, load_molecules, molecule_ids, smiles_tokens
from minitransformers.models.published import published_file
from minitransformers.models.torch_file import read_torch_file

ESTER = "CC(=O)O.OCC>>CC(=O)OCC"                             # acetic acid and ethanol give ethyl acetate
REACTIONS = [ESTER, "c1ccccc1Br.OB(O)c1ccncc1>>c1ccc(-c2ccncc2)cc1", "C[C@@H](N)C(=O)[O-].[Na+]>>[NH3+][C@@H](C)C(=O)O"]


@pytest.fixture(scope="module")
def model() -> MoleculeModel:
    try:
        return load_molecules()
    except ValueError as absent:
        pytest.skip(str(absent))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("CC(=O)O", ["C", "C", "(", "=", "O", ")", "O"]),
        ("ClCBr", ["Cl", "C", "Br"]),
        ("[13C@@H]1C%10CC1C%10", ["[13C@@H]", "1", "C", "%10", "C", "C", "1", "C", "%10"]),
        ("O>>[O-].[Na+]", ["O", ">>", "[O-]", ".", "[Na+]"]),
        ("C>O>C", ["C", ">", "O", ">", "C"]),
        (r"F/C=C\F", ["F", "/", "C", "=", "C", "\\", "F"]),
        ("C#N~[MASK]", ["C", "#", "N", "~", "[MASK]"]),
        ("[MASK][MASK]c", ["[MASK]", "[MASK]", "c"]),
    ],
)
def test_smiles_are_cut_into_atoms_bonds_and_marks(text, tokens):
    assert smiles_tokens(text) == tokens


@pytest.mark.parametrize("text", REACTIONS)
def test_tokens_together_are_the_text(text):
    assert "".join(smiles_tokens(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text: got an empty text"),
        ("C C", "text: got ' ' at character 2"),
        ("CX", "text: got 'X' at character 2"),
        ("C[OH", r"text: got '\[' at character 2"),
        ("C[]", r"text: got '\[' at character 2"),
        ("%1", "text: got '%' at character 1"),
        ("C]", r"text: got '\]' at character 2"),
        ("Cé", "text: got 'é' at character 2"),
    ],
)
def test_what_is_no_smiles_is_refused_with_its_place(text, message):
    with pytest.raises(ValueError, match=message):
        smiles_tokens(text)


@pytest.mark.weights
@pytest.mark.parametrize(
    "text", ["CC(=[MASK])O.OCC>>CC(=O)OCC", "CC(=O)[MASK].OCC>>CC(=O)OCC", "CC(=O)O.OCC>>CC(=[MASK])OCC", "CC(=O)O.OCC>>CC(=O)[MASK]CC"]
)
def test_a_masked_oxygen_is_found(model, text):
    """Four of the five; the one of ethanol, which begins its molecule, is not (the test below)."""
    (found,) = fill_gaps(text, model=model)
    assert found[0].token == "O" and found[0].probability > 0.75
    assert len(found) == 5 and [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)


@pytest.mark.weights
def test_not_every_gap_is_filled_rightly(model):
    (found,) = fill_gaps("CC(=O)O.[MASK]CC>>CC(=O)OCC", model=model, top=1)
    assert len(found) == 1 and found[0].token != "O" and found[0].probability < 0.5


@pytest.mark.weights
def test_gaps_of_several_kinds_are_filled_from_left_to_right(model):
    """A bond and an atom; then the number that closes a ring, and a bracket that is open."""
    for text, wanted in (("CC(=O)O.OCC>>CC([MASK]O)O[MASK]C", ["=", "C"]), ("c1ccccc1Br.OB(O)c1ccncc1>>c1ccc(-c2ccncc[MASK][MASK]cc1", ["2", ")"])):
        assert [best.token for (best,) in fill_gaps(text, model=model, top=1)] == wanted


@pytest.mark.weights
def test_all_probabilities_make_one(model):
    (found,) = fill_gaps("C[MASK]", model=model, top=10_000)
    assert len(found) == 591 and sum(one.probability for one in found) == pytest.approx(1, abs=1e-5)


@pytest.mark.weights
def test_it_is_one_block_of_256_with_a_table_of_128(model):
    params = model.params
    assert isinstance(params, Albert) and params.pair is None
    assert params.embedding.weight.shape == (591, 128) and params.widen.weight.shape == (128, 256)
    assert trees.count_parameters(params) == 801_359 and len(model.ids) == 591
    configuration = json.loads(published_file("albert_smiles", "configuration").read_text())
    assert (configuration["num_hidden_layers"], configuration["num_attention_heads"]) == (SETTINGS["num_layers"], SETTINGS["num_heads"])
    assert (configuration["hidden_act"], configuration["layer_norm_eps"]) == ("gelu", 1e-12)
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}
    assert molecule_ids("C[XeH9]", model=model).tolist() == [12, model.ids["C"], 11, 13]  # [CLS] C [UNK] [SEP]


@pytest.mark.weights
@pytest.mark.parametrize(
    ("text", "top", "message"),
    [
        (ESTER, 5, r"text: got no \[MASK\]"),
        ("C[SEP]", 5, r"text: got \[SEP\], wants no special token but \[MASK\]"),
        ("C[unused3][MASK]", 5, r"text: got \[unused3\]"),
        ("[MASK]" + "C" * 510, 5, "text: got 511 tokens, wants at most 510"),
        ("C[MASK]", 0, "top: got 0"),
        ("C[MASK]", True, "top: got True"),
        ("one [MASK]", 5, "text: got 'e' at character 3"),
    ],
)
def test_what_cannot_be_filled_is_refused(model, text, top, message):
    with pytest.raises(ValueError, match=message):
        fill_gaps(text, model=model, top=top)


@pytest.mark.weights
@pytest.mark.parity
def test_logits_are_those_of_transformers(model):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    configuration = json.loads(published_file("albert_smiles", "configuration").read_text())
    kept = ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps")
    theirs = transformers.AlbertForMaskedLM(transformers.AlbertConfig(**{key: configuration[key] for key in kept}, attn_implementation="eager"))
    weights = torch.load(published_file("albert_smiles", "weights"), map_location="cpu", weights_only=True)
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not missing and set(unexpected) == {"albert.pooler.weight", "albert.pooler.bias"}
    for key, array in read_torch_file(published_file("albert_smiles", "weights")).items():
        np.testing.assert_array_equal(array, weights[key].numpy(), err_msg=key)
    for key, array in albert_weights(model.params).items():
        np.testing.assert_array_equal(array, weights[key].numpy(), err_msg=key)
    for text in (*REACTIONS, "CC(=O)O.[MASK]CC>>CC(=O)OCC"):
        ids = molecule_ids(text, model=model)
        with torch.no_grad():
            expected = theirs.eval()(torch.tensor(ids[None])).logits[0].numpy()
        np.testing.assert_allclose(albert(model.params, ids=ids, **SETTINGS)[0].tokens, expected, rtol=0, atol=1e-4)
