"""Offsets of keys from queries: what every position that acts on the scores is made from."""

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.foundation import invalid


def offsets(num_queries: int, num_keys: int) -> Int[Array, "queries keys"]:
    """Key minus query, j - (i + num_keys - num_queries): the queries are the last of the positions that the keys span.

    So a cache of earlier keys needs no offset of its own. Raises ValueError when there are more queries than keys.
    """
    if num_queries > num_keys:
        raise invalid("num_queries", got=num_queries, wants=f"1 to num_keys = {num_keys}: queries are the last of the keys' positions")
    return np.arange(num_keys) - np.arange(num_keys - num_queries, num_keys)[:, None]
