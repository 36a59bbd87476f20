"""What becomes of a word that occurs twice?

No paper: the gradient of a lookup is the product of the one-hot matrix, transposed, with what arrives, so a word that occurs twice gets both
gradients. An indexed += in NumPy keeps only the last of them; np.add.at adds them one after the other. In real text most words are repeats.
"""

# %%
import re

import numpy as np

from minitransformers import embedding, init_embedding
from minitransformers.reporting import Section, paired_times
from minitransformers.training.text import python_reference

section = Section(__file__, __doc__, kind="exact")
TOKENS, WIDTH = 4096, 128
words = re.findall(r"\w+|[^\w\s]", python_reference().lower())
vocabulary = {word: i for i, word in enumerate(sorted(set(words)))}
ids = np.array([vocabulary[word] for word in words[:TOKENS]]).reshape(8, -1)


# %%
def with_add_at(table, dout):
    dweight = np.zeros_like(table)
    np.add.at(dweight, ids, dout)
    return dweight


def last_wins(table, dout):
    dweight = np.zeros_like(table)
    dweight[ids] += dout
    return dweight


@section.experiment
def experiment(rng):
    params = init_embedding(rng, len(vocabulary), WIDTH)
    dout = rng.integers(-8, 9, size=(*ids.shape, WIDTH)).astype(np.float32)  # whole numbers: sums have no rounding
    _, backward = embedding(params, ids=ids)
    expected, occur = with_add_at(params.weight, dout), np.unique(ids)
    yield "words", "all", {"repeats": 1 - len(occur) / ids.size}
    for name, found in {"product": backward(dout).weight, "+=": last_wins(params.weight, dout)}.items():
        yield name, "all", {"wrong": np.any(found != expected, axis=1)[occur].mean(), "largest": np.abs(found - expected).max()}
    forms = {"product": lambda: backward(dout), "np.add.at": lambda: with_add_at(params.weight, dout)}
    for name, ratio in paired_times(forms, rounds=2 if section.quick else 25).items():
        yield name, "all", {"time": ratio.median}


# %%
def of(found, measure, name):
    return float(np.ravel(found[measure][name]["all"])[0])


@section.claim(
    "Repeated ids add up, exactly",
    paper="Bengio et al. 2003, JMLR 3:1137, section 2: a row of the matrix C is shared by all places at which its word stands",
    measured=lambda found: f"largest difference {of(found, 'largest', 'product'):.0f}, on {TOKENS} words of real text of which {of(found, 'repeats', 'words'):.0%} are repeats; "
    f"an indexed += gets {of(found, 'wrong', '+='):.0%} of the rows that occur wrong",
)
def adds_up(found):
    """Equal to np.add.at to the last bit where sums are whole numbers. More than half of the words are repeats, and an indexed += gets more
    than a tenth of the rows that occur wrong.
    """
    return of(found, "largest", "product") == 0 and of(found, "repeats", "words") > 0.5 and of(found, "wrong", "+=") > 0.1


@section.claim(
    "The sparse product is faster than np.add.at",
    paper="no paper: both are the same sum",
    kind="timed",
    measured=lambda found: f"np.add.at takes {of(found, 'time', 'np.add.at'):.1f} times as long, on {TOKENS} words of width {WIDTH} and a vocabulary of {len(vocabulary)}",
)
def faster(found):
    """np.add.at takes at least three times as long."""
    return of(found, "time", "np.add.at") >= 3


@section.report
def report(found):
    numbers = {"repeats": 100 * of(found, "repeats", "words"), "wrong_rows": 100 * of(found, "wrong", "+="), "times_faster": of(found, "time", "np.add.at")}
    section.values("embedding", {"tokens": TOKENS, "vocabulary": len(vocabulary), **numbers})


if __name__ == "__main__":
    section.main()
