"""Random texts of the swap's words and others, with their tags."""

import numpy as np

from minitransformers.bias_mitigation.counterfactual_augmentation import NAMES, PAIRS, TAGGED, swap_map

SWAPS = swap_map(PAIRS, tagged=TAGGED, names=NAMES)


def random_text(rng, length=9):
    """Words of the lists and others, in three cases, with the tags that they want."""
    words = [(w, "") for pair in PAIRS for w in pair]
    words += [(w, tag) for a, b, tag in TAGGED for w in (a, b)] + [("rose", ""), ("the", ""), ("sHe", ""), ("Mary", ""), ("John", "")]
    tokens, tags = [], []
    for i in rng.integers(len(words), size=length):
        word, tag = words[i]
        if word not in ("Mary", "John", "sHe"):
            word = (str.lower, str.title, str.upper)[rng.integers(3)](word)
        tokens.append(word)
        tags.append(tag)
    return tokens, tags


TEXTS = [random_text(np.random.default_rng(seed)) for seed in range(40)]
