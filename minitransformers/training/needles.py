"""Needles: tasks in which one thing is to be found anywhere in a text, for attention that may not look everywhere.

Each function draws a fresh batch, and what the answers are, as those of synthetic.py do.

    matching             what did this name carry, the first time that it stood here?
    flags                which flag stands somewhere in the text? Every position is asked
    keys_and_values      which value stands beside this key? Keys are vectors, and every token asks
    surprising_pairs     the same of a few pairs in a text that else repeats itself, asked at its end

Sources: matching takes what hashing is for, Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451, section 2; flags what a global token
is for, Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1; keys_and_values the retrieval of key information, Nakanishi 2025,
arXiv:2501.19399, section 3.4; surprising_pairs what cannot be predicted, Zancato et al. 2024, arXiv:2407.06324, section 3. The papers measure on other tasks; these are the smallest of their kind.
"""

from typing import Annotated

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import at_least, checked, invalid
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


@checked
def surprising_pairs(
    rng: np.random.Generator, *, batch_size: Size, length: Size, num_pairs: Size, part: Size, period: Size, first: Annotated[int, at_least(0)], last: Size
) -> tuple[Array, Array, Array, Array]:
    """A text that repeats itself every ``period`` tokens but for pairs of an address and a value, anywhere from ``first`` to before ``last``.

    A token is an address, a value and a question, random directions of ``part`` numbers each; only the last num_pairs tokens, one for each pair
    in another order, have a question, and nothing else. Returns tokens (batch_size, length, 3 part); the values of the pairs (batch_size,
    num_pairs, part); which pair each question is about, and where the pairs stand, both (batch_size, num_pairs).
    Raises ValueError for a length that is no multiple of the period, and for fewer places than pairs.
    """
    if length % period:
        raise invalid("length", got=length, wants=f"a multiple of the period of {period}")
    if num_pairs > last - first:
        raise invalid("num_pairs", got=num_pairs, wants=f"at most {last - first}: so many places are there")

    def directions(*shape: int) -> Array:
        rows = rng.normal(size=(*shape, part))
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    def token(address: Array, value: Array) -> Array:
        return np.concatenate([address, value, np.zeros_like(address)], axis=-1)

    x = np.tile(token(*directions(2, batch_size, period)), (1, length // period, 1))
    address, value = directions(2, batch_size, num_pairs)
    places = np.stack([np.sort(rng.choice(np.arange(first, last), num_pairs, replace=False)) for _ in range(batch_size)])
    asked, rows = rng.permuted(np.tile(np.arange(num_pairs), (batch_size, 1)), axis=1), np.arange(batch_size)[:, None]
    x[rows, places] = token(address, value)
    x[:, -num_pairs:] = 0
    x[:, -num_pairs:, 2 * part :] = address[rows, asked]
    return x.astype(np.float32), value.astype(np.float32), asked, places
