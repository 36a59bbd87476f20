"""What is done to queries and keys before they meet, and before keys go into a cache: the slot ``prepare`` of every attention.

    prepare(params, query, key, *, positions=None) -> (query, key), backward
    backward((dquery, dkey)) -> dparams, dquery, dkey

params is what is learned there, None for nothing; positions are those of the queries and keys (0, 1, ... where None).
QK-norm is one such function, ``on_both(rope)`` is one, and ``functools.partial(chain, parts=(qk_norm, on_both(rope)))`` is
both, one after the other.
"""

from collections.abc import Callable

from minitransformers.foundation import slot


@slot
def unprepared(query, key, *, positions=None):
    """Queries and keys as they are."""
    return (query, key), tuple


def on_both(turn: Callable) -> Callable:
    """The prepare that does the same to queries and to keys: ``turn(x, positions=positions) -> x, backward``. It learns nothing."""

    @slot
    def prepare(query, key, *, positions=None):
        query, query_backward = turn(query, positions=positions)
        key, key_backward = turn(key, positions=positions)

        def backward(dboth):
            return query_backward(dboth[0]), key_backward(dboth[1])

        return (query, key), backward

    return prepare
