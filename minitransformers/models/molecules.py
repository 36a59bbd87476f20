"""Chemical reactions with gaps: an ALBERT that others have trained says which atom, bond or ring mark is missing.

Source: Schwaller et al. 2021, Extraction of organic chemistry grammar from unsupervised learning of chemical reactions, Science Advances
7:eabe4166: a masked language model over reactions, written as SMILES. Twelve uses of one block of albert, with the exact GELU. A SMILES
text is cut by one regular expression: an atom in brackets is one token, Cl and Br are, and so is each other character but the two of >>.
"""

import re
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.gelu import gelu_exact
from minitransformers.basics.softmax import softmax
from minitransformers.foundation import invalid, slot
from minitransformers.models.albert import Albert, albert, load_albert
from minitransformers.models.published import published_file

SETTINGS: dict[str, Any] = {"num_layers": 12, "num_heads": 8, "activation": slot(gelu_exact)}
MASK = "[MASK]"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# In brackets: an atom with its isotope, charge, hydrogens, handedness. Two digits after %: the number of a ring.
_TOKEN = re.compile(r"\[[^\[\]\s]+\]|Cl|Br|%[0-9]{2}|>>|[BCNOPSFIbcnops0-9().=#$:/\\~+\-@?*>]")


class MoleculeModel(NamedTuple):
    """The parameters, and the id of each token that they were trained with."""

    params: Albert
    ids: dict[str, int]


class Filled(NamedTuple):
    """What may stand in a gap, and how probable it is."""

    token: str
    probability: float


def load_molecules() -> MoleculeModel:
    """RXNMapper's ALBERT, in float32. Raises ValueError that says how it is obtained where it is not there."""
    params = load_albert(published_file("albert_smiles", "weights"))
    tokens = published_file("albert_smiles", "vocabulary").read_text(encoding="utf-8").split("\n")
    return MoleculeModel(params, {token: i for i, token in enumerate(tokens) if token})


def smiles_tokens(text: str) -> list[str]:
    """The tokens of a molecule or a reaction in SMILES; together they are the text again.

    Raises ValueError for an empty text, and names the first character that begins no token.
    """
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise invalid("text", got=f"{text[at]!r} at character {at + 1}", wants="a molecule or a reaction in SMILES")
        tokens.append(found[0])
        at = found.end()
    if not tokens:
        raise invalid("text", got="an empty text", wants="a molecule or a reaction in SMILES")
    return tokens


def molecule_ids(text: str, *, model: MoleculeModel) -> Array:
    """The ids of a text, with [CLS] before and [SEP] behind it; [MASK] in it is a gap. An atom that the model never met is [UNK].

    Raises ValueError for what is no SMILES, for another special token in it, and for more tokens than the model has positions.
    """
    tokens = smiles_tokens(text)
    if wrong := [token for token in tokens if token in _SPECIAL or token.startswith("[unused")]:
        raise invalid("text", got=wrong[0], wants=f"no special token but {MASK}")
    longest = len(model.params.positions.table)
    if len(tokens) + 2 > longest:
        raise invalid("text", got=f"{len(tokens)} tokens", wants=f"at most {longest - 2}, as the model has {longest} positions")
    return np.array([model.ids.get(token, model.ids["[UNK]"]) for token in ("[CLS]", *tokens, "[SEP]")])


def fill_gaps(text: str, *, model: MoleculeModel, top: int = 5) -> list[list[Filled]]:
    """For each [MASK] of a text in SMILES, from left to right, the ``top`` tokens that most probably stand there, the best first.

    All gaps are filled in one pass: each as if the others stayed open. Raises ValueError where there is no gap.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise invalid("top", got=repr(top), wants="a whole number of at least 1")
    ids = molecule_ids(text, model=model)
    gaps = np.flatnonzero(ids == model.ids[MASK])
    if not gaps.size:
        raise invalid("text", got=f"no {MASK}", wants="at least one, where something is to be found out")
    scores: Any = albert(model.params, ids=ids, **SETTINGS)[0].tokens
    tokens = {i: token for token, i in model.ids.items()}
    filled = []
    for probabilities in softmax(scores[gaps])[0]:
        best = np.argsort(-probabilities, kind="stable")[:top]
        filled.append([Filled(tokens[int(i)], float(probabilities[i])) for i in best])
    return filled
