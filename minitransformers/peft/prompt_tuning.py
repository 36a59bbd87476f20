"""Prompt tuning: a few learned embeddings stand before the text, and whatever model reads them is not touched.

A model is told what to do by words in front. Here the words are free vectors: P of them, once, at the input alone. The way in is
the table of embeddings. It gets a row more for each of them, and the ids in front name these rows: so the prompt goes through
every model that reads ids, whatever it is made of, takes the positions 0 .. P - 1, and gets its gradient as a row of the table.
Texts of one batch may name the rows of different tasks. What the model says at the prompt's positions is cut off, and so are
the logits of its rows where the head is the table again (to train, they are 0 words: their gradient is 0).
P d_model parameters a task; each text is P positions longer. Source: Lester, Al-Rfou and Constant 2021, arXiv:2104.08691,
section 2. E is the frozen table, of V rows; M the model on a table and ids, M* its backward.

    table = [E ; prompt]                                     (1)
    ids' = [V + task P + (0 .. P - 1) ; ids]                 (2)
    logits = M(table, ids'), from position P on, of the first V words   (3)
    dtable = M*(dlogits at these places, and 0 elsewhere)    (4)
    dprompt = the rows of dtable from V on                   (5)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.embedding import Embedding
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, procedure
from minitransformers.peft.prefixes import check_context


@checked
def init_prompt_tuning(
    rng: np.random.Generator, length: Annotated[int, at_least(1)], d_model: Annotated[int, at_least(1)], *, dtype: type = np.float32
) -> Array:
    """Uniform numbers between -0.5 and 0.5, the paper's: far larger than embeddings of deviation 0.02 are."""
    return rng.uniform(-0.5, 0.5, size=(length, d_model)).astype(dtype)


@checked
def prompt_of_frequent_tokens(
    rng: np.random.Generator, length: Annotated[int, at_least(1)], *, base: Float[Array, "vocabulary d_model"],
    counts: Annotated[Int[Array, "vocabulary"], at_least(0)], most: Annotated[int, at_least(1)] = 5000,
) -> Array:  # fmt: skip
    """Rows of the table, of ``length`` tokens drawn from the ``most`` frequent that occur at all; each once, if there are enough.

    A copy. Raises ValueError where no token occurs.
    """
    known = np.argsort(-counts, kind="stable")[: min(most, np.count_nonzero(counts))]
    if not known.size:
        raise invalid("counts", got="0 for every token", wants="the number of times that each token occurs")
    return base[rng.choice(known, size=length, replace=length > known.size)]


@checked
def prompt_of_labels(labels: Sequence[str], *, base: Float[Array, "vocabulary d_model"], token_ids: Mapping[str, int]) -> Array:
    """A row for each label of a classification: that of its word, or the mean of its words' (split at spaces).

    A copy. Raises ValueError for a word that token_ids does not have, naming it, and for no labels.
    """
    absent = [word for label in labels for word in label.split() if word not in token_ids]
    if absent or not labels or not all(label.split() for label in labels):
        got = f"{absent[0]!r}, which is not in the vocabulary" if absent else repr(list(labels))
        raise invalid("labels", got=got, wants="words that token_ids has, at least one for each label")
    return np.stack([base[[token_ids[word] for word in label.split()]].mean(axis=0) for label in labels])


@procedure(
    title="Ids behind a prompt",
    source="Lester, Al-Rfou and Constant 2021, arXiv:2104.08691, section 2",
    example=lambda rng: example(rng.integers(7, size=(2, 4)), vocabulary=7, length=3, tasks=np.array([1, 0])),
    rejects=[bad(ids=np.array([[0, 7], [0, 0]])), bad(tasks=np.array([-1, 0]))],
)
def prompted_ids(
    ids: Annotated[Int[Array, "*batch positions"], at_least(0)], *, vocabulary: Annotated[int, at_least(1)],
    length: Annotated[int, at_least(1)], tasks: Annotated[Int[Array, "*batch"], at_least(0)] | None = None,
) -> Int[Array, "*batch both"]:  # fmt: skip
    """The ids of a prompt's rows before those of the text; tasks says whose of several prompts, for each text, the first unless given.

    Raises ValueError for ids that are no words of the vocabulary: they would name rows of a prompt.
    """
    if ids.max() >= vocabulary:
        raise invalid("ids", got=f"ids from {ids.min()} to {ids.max()}", wants=f"0 to {vocabulary - 1}, the words of the vocabulary")
    first = vocabulary + length * (np.zeros(ids.shape[:-1], ids.dtype) if tasks is None else tasks.astype(ids.dtype))
    front = first[..., None] + np.arange(length, dtype=ids.dtype)
    return np.concatenate([front, ids], axis=-1)             # (2)


@concept(
    title="Prompt tuning",
    source="Lester, Al-Rfou and Constant 2021, arXiv:2104.08691, section 2",
    example=lambda rng: example(rng.normal(size=(3, 5)), base=rng.normal(size=(7, 5))),
)
def prompt_tuning(prompt: Float[Array, "prompt d_model"], *, base: Float[Array, "vocabulary d_model"]) -> tuple[Array, Backward]:
    """The table of embeddings with the rows of the prompt, or of one prompt after the other, behind those of the vocabulary.

    Returns table (vocabulary + prompt, d_model), and backward: dtable -> dprompt.
    """
    table = np.concatenate([base, prompt])                   # (1)

    def backward(dtable):
        return dtable[len(base) :].copy()                    # E is frozen  (5)

    return table, backward


@checked
def prompted(
    prompt: Float[Array, "prompt d_model"], *, base: Any, ids: Int[Array, "*batch positions"], model: Callable,
    tasks: Int[Array, "*batch"] | None = None, num_tasks: Annotated[int, at_least(1)] = 1,
) -> tuple[Array, Backward]:  # fmt: skip
    """The logits of a text behind a prompt, ``model(tree, ids=ids) -> logits, backward`` being any that reads its tree's ``embedding``.

    With num_tasks above 1 prompt holds theirs, one after the other, and tasks says whose stands before each text.
    Returns logits (*batch, positions, vocabulary), and backward: dlogits -> dprompt.
    Raises ValueError where prompt and text are longer than a table of positions in base, num_tasks do not share the prompt's rows
    evenly, a task is unknown, or base has no embedding.
    """
    if not isinstance(getattr(base, "embedding", None), Embedding):
        raise invalid("base", got=type(base).__name__, wants="the parameters of a model, with a field embedding: Embedding")
    if len(prompt) % num_tasks:
        raise invalid("num_tasks", got=num_tasks, wants=f"a number of prompts that share {len(prompt)} rows evenly")
    if tasks is not None and not (tasks.min() >= 0 and tasks.max() < num_tasks):
        raise invalid("tasks", got=f"{tasks.min()} to {tasks.max()}", wants=f"0 to {num_tasks - 1}, the prompts that there are")
    vocabulary, length = len(base.embedding.weight), len(prompt) // num_tasks
    check_context("ids", length + ids.shape[-1], base)
    table, table_backward = prompt_tuning(prompt, base=base.embedding.weight)
    both = prompted_ids(ids, vocabulary=vocabulary, length=length, tasks=tasks)
    all_logits, model_backward = model(base._replace(embedding=Embedding(table)), ids=both)
    logits = all_logits[..., length:, :vocabulary]           # (3)

    def backward(dlogits):
        padded = np.zeros(all_logits.shape, dlogits.dtype)
        padded[..., length:, :vocabulary] = dlogits
        return table_backward(model_backward(padded).embedding.weight)  # (4)

    return logits, backward
