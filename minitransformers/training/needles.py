"""Needles: tasks in which one thing is to be found anywhere in a text, for attention that may not look everywhere.

Each function draws a fresh batch, and what the answers are, as those of synthetic.py do.

    matching             what did this name carry, the first time that it stood here?
    flags                which flag stands somewhere in the text? Every position is asked
    keys_and_values      which value stands beside this key? Keys are vectors, and every token asks

Sources: matching takes what hashing is for, Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451, section 2; flags what a global token
is for, Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1; keys_and_values the retrieval of key information, Nakanishi 2025,
arXiv:2501.19399, section 3.4. The papers measure on other tasks; these are the smallest of their kind.
"""

from typing import Annotated

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import at_least, checked
from minitransformers.training.synthetic import Size
from minitransformers.training.task import IGNORED


@checked
def matching(rng: np.random.Generator, *, batch_size: Size, num_names: Size, num_colours: Annotated[int, at_least(2)]) -> tuple[Array, Array]:
    """Every name stands once in each half, in random orders: first with a colour, then with a question, which is for that colour.

    Tokens are the names, the colours after them, and one for a question. Returns ids (batch_size, 2, 2 num_names), the names and what
    they carry; and targets (batch_size, 2 num_names), colours from 0 on. Guessing is right in 1 of num_colours.
    """
    names = rng.permuted(np.tile(np.arange(num_names), (2, batch_size, 1)), axis=-1)
    colour = rng.integers(num_colours, size=(batch_size, num_names))
    first, asked = (np.take_along_axis(colour, own, axis=-1) for own in names)
    carried = num_names + np.concatenate([first, np.full_like(first, num_colours)], axis=-1)
    targets = np.concatenate([np.full_like(first, IGNORED), asked], axis=-1)
    return np.stack([np.concatenate(list(names), axis=-1), carried], axis=1), targets


@checked
def flags(rng: np.random.Generator, *, batch_size: Size, length: Annotated[int, at_least(2)], num_flags: Size, num_noise: Size) -> tuple[Array, Array]:
    """One flag somewhere among noise, and every position is asked which it is.

    Flags are the tokens below num_flags, noise the num_noise after them, and one more token always stands first, never a flag in its place.
    Returns ids and targets, (batch_size, length). Guessing is right in 1 of num_flags.
    """
    ids = rng.integers(num_flags, num_flags + num_noise, size=(batch_size, length))
    ids[:, 0] = num_flags + num_noise
    flag, place = rng.integers(num_flags, size=batch_size), rng.integers(1, length, size=batch_size)
    ids[np.arange(batch_size), place] = flag
    return ids, np.repeat(flag[:, None], length, axis=1)


@checked
def keys_and_values(
    rng: np.random.Generator, *, batch_size: Size, length: Size, d_key: Size, num_values: Annotated[int, at_least(2)]
) -> tuple[Array, Array, Array]:
    """Tokens of a random key, the key of one of the tokens so far, itself among them, and a value, of which the asked one is the answer.

    Returns tokens (batch_size, length, 2 d_key + num_values), the value as a one in its place; targets, and where what is asked
    for stands, both (batch_size, length). Guessing is right in 1 of num_values.
    """
    keys = rng.standard_normal((batch_size, length, d_key), np.float32)
    value, asked = rng.integers(num_values, size=(batch_size, length)), rng.integers(np.arange(1, length + 1), size=(batch_size, length))
    question = np.take_along_axis(keys, asked[..., None], axis=1)
    tokens = np.concatenate([keys, question, np.eye(num_values, dtype=np.float32)[value]], axis=-1)
    return tokens, np.take_along_axis(value, asked, axis=1), asked
