"""Prepares: what is done to queries and keys before they meet, and before keys go into a cache.

    prepare(params, query, key, *, positions=None) -> (query, key), backward
    backward((dquery, dkey)) -> dparams, dquery, dkey

params is what the prepare learns, None for nothing; positions are those of the queries and keys (0, 1, ... where None).
QK-norm is one, ``on_both(rope)`` is one, and ``functools.partial(chain, parts=(qk_norm, on_both(rope)))`` is both.
"""

from collections.abc import Callable


def unprepared(params, query, key, *, positions=None):
    """Queries and keys as they are."""
    return (query, key), lambda dboth: (None, *dboth)


def on_both(turn: Callable) -> Callable:
    """The prepare that does one and the same to queries and to keys: ``turn(x, positions=positions) -> x, backward``."""

    def prepare(params, query, key, *, positions=None):
        query, query_backward = turn(query, positions=positions)
        key, key_backward = turn(key, positions=positions)

        def backward(dboth):
            return None, query_backward(dboth[0]), key_backward(dboth[1])

        return (query, key), backward

    return prepare
