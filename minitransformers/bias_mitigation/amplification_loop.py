"""Amplification loop: a model is trained on what a model wrote, which was trained on what a model wrote.

A language model that only counts shows what happens, and why. Sentences have a prompt, and each later token depends on the one before it.
Written as the model has counted, a generation is a sample of the last one: differences drift, and grow no more than they shrink.
Written at a temperature below 1, or with the unlikely cut off, each generation is sharper than the one it learned from, and the next
learns the sharper one. The sharpening amplifies, and the loop repeats it. Costs one pass over the sentences a generation.

Source: the loop is that of Shumailov et al. 2023, arXiv:2305.17493; bias amplification as a name is Zhao et al. 2017, arXiv:1707.09457.
Differs from both: counts in the place of a network, so that nothing but the loop is left. x_k is the token at position k, s the
smoothing, V_k how many tokens position k has, T the temperature, r the generation.

    n_k(a, b) = number of sentences with x_k = a and x_{k+1} = b   (1)
    log p_k(b | a) = log (n_k(a, b) + s) - log (n_k(a, .) + s V_{k+1})   (2)
    x'_1 = x_1,   x'_{k+1} drawn from sharpened p_k(. | x'_k)   (3)

Where sentences are many, (3) at a temperature gives in each generation

    log p(b | a) - log p(c | a)  ->  (log p(b | a) - log p(c | a)) / T
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import bad, example, invalid, positive, procedure
from minitransformers.models.decoding import next_token_probabilities

_ROWS = np.stack([np.arange(12) % 3, np.arange(12) % 2, np.arange(12) // 3], axis=1)


@procedure(
    title="Count model",
    source="Shumailov et al. 2023, arXiv:2305.17493",
    example=lambda rng: example(_ROWS, sizes=(3, 2, 4)),
    rejects=[
        bad("sizes", sizes=(3, 2)), bad("sizes", sizes=(3, 2, 3)), bad("sizes", sizes=(3, 0, 4)), bad("sentences", sentences=_ROWS - 1),
        bad("sentences", sentences=_ROWS[:, :1], sizes=(3,)),
    ],
)  # fmt: skip
def count_model(
    sentences: Int[Array, "sentences positions"], *, sizes: Sequence[int], smoothing: Annotated[float, positive] = 0.5
) -> list[Float[Array, "_ _"]]:
    """Log-probabilities of the token at each position but the first, given the one before: (sizes[k], sizes[k + 1]) for each k.

    sizes says how many tokens each position has; smoothing is added to every count.
    Raises ValueError where sizes does not say so for each position, sentences have one position, or hold an id that is none of so many.
    """
    if len(sizes) != sentences.shape[1] or min(sizes, default=0) < 1:
        raise invalid("sizes", got=sizes, wants=f"{sentences.shape[1]} numbers of at least 1, one a position")
    if len(sizes) < 2:
        raise invalid("sentences", got="one position", wants="a prompt and something after it")
    if sentences.min() < 0:
        raise invalid("sentences", got=f"the id {sentences.min()}", wants="ids of at least 0")
    if (sentences.max(axis=0) >= np.array(sizes)).any():
        raise invalid("sizes", got=sizes, wants=f"more than {tuple(sentences.max(axis=0).tolist())}, the largest ids")
    tables = []
    for k in range(len(sizes) - 1):
        pair = sentences[:, k] * sizes[k + 1] + sentences[:, k + 1]
        n = np.bincount(pair, minlength=sizes[k] * sizes[k + 1]).reshape(sizes[k], sizes[k + 1])  # (1)
        tables.append(np.log(n + smoothing) - np.log(n.sum(axis=1, keepdims=True) + smoothing * sizes[k + 1]))  # (2)
    return tables


@procedure(
    title="Next generation",
    source="Shumailov et al. 2023, arXiv:2305.17493",
    example=lambda rng: example(_ROWS, sizes=(3, 2, 4), rng=rng),
    rejects=[
        bad("sizes", sizes=(3, 2)), bad("sizes", sizes=(3, 2, 3)), bad("sentences", sentences=_ROWS - 1),
        bad(probabilities=lambda logits: logits[:, :1]), bad(probabilities=lambda logits: 0 * logits),
    ],
)  # fmt: skip
def next_generation(
    sentences: Int[Array, "sentences positions"], *, sizes: Sequence[int], rng: np.random.Generator, smoothing: Annotated[float, positive] = 0.5,
    probabilities: Callable = next_token_probabilities,
) -> Int[Array, "sentences positions"]:  # fmt: skip
    """As many sentences with the same prompts (the first tokens), written by a model that has counted the ones given.

    probabilities(log-probabilities) -> what is drawn from, row by row: a ``functools.partial`` of next_token_probabilities with a
    temperature or top_p, or any other function.
    Raises ValueError as count_model does, and where probabilities gives none.
    """
    columns = [sentences[:, 0]]
    for table in count_model(sentences, sizes=sizes, smoothing=smoothing):
        p = probabilities(table)
        if np.shape(p) != table.shape or not np.allclose(np.sum(p, axis=-1), 1):
            raise invalid("probabilities", got=f"an array of shape {np.shape(p)}", wants=f"distributions, {table.shape}, each of sum 1")
        below = np.cumsum(p, axis=-1)[:, :-1]                # the last sum is 1, which no draw reaches
        columns.append((rng.random(len(sentences))[:, None] >= below[columns[-1]]).sum(axis=-1))  # (3)
    return np.stack(columns, axis=1)
