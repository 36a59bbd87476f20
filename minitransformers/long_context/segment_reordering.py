"""Segment reordering: cut a text into a few chunks, shuffle them, and ask a model that has read all which order it was.

A memory is of use only where something asks for what it holds. To say in which order the chunks came, the last segment has to
know all of them. The question is a classification: every permutation of 1, 2, ... up to m chunks is a class of its own. The
answer is read off the last position of the last segment, and nowhere else.

Source: Ding et al. 2020 (ERNIE-Doc), arXiv:2012.15688, section 3.4; with m = 4 there are 33 classes, as in the authors' code.
Differs from that code: no map with a tanh before the head; the class numbers are ours. A permutation p says of each place which
chunk stands there; c_k is the number of places after k that hold an earlier chunk than place k (its Lehmer code).

    classes = sum over i = 1 .. m of i!                      (1)
    rank = sum over k of c_k (n - 1 - k)!, for n chunks, k = 0 .. n - 1   (2)
    label = sum over i < n of i! + rank                      (3)
    n uniform in 1 .. m, cuts at n - 1 places of the text, p uniform of the n!   (4)
    text = the chunks p_0, p_1, ... one after the other      (5)
    logits = x_last W + b                                    (6)
    out = mean over the batch of -log softmax(logits) at the label   (7)
    dlogits = dout (softmax(logits) - onehot(label)) / batch (8)
    dx_last = dlogits W^T, dx = 0 at all other positions     (9)
    dW = x_last^T dlogits, db = sum of dlogits               (10)
"""

from collections.abc import Sequence
from math import factorial
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid, procedure

MaxChunks = Annotated[int, at_least(2)]


class ShuffledChunks(NamedTuple):
    """The text in its new order, which chunk stands at each place, how long each is there, and the class of the order."""

    ids: Int[Array, "positions"]
    permutation: tuple[int, ...]
    lengths: Int[Array, "chunks"]
    label: int


@procedure(title="Number of orders", source="Ding et al. 2020 (ERNIE-Doc), arXiv:2012.15688, section 3.4", example=lambda rng: example(4))
def count_orders(max_chunks: MaxChunks) -> int:
    """How many classes there are: the orders of 1, 2, ... up to max_chunks chunks."""
    return sum(factorial(i) for i in range(1, max_chunks + 1))  # (1)


@procedure(
    title="Label of an order",
    source="Ding et al. 2020 (ERNIE-Doc), arXiv:2012.15688, section 3.4",
    example=lambda rng: example((2, 0, 1)),
    rejects=[bad(permutation=(0, 2)), bad(permutation=(1, 1, 0)), bad(permutation=())],
)
def order_label(permutation: Sequence[int]) -> int:
    """The class of an order of chunks: 0 for one chunk alone, 1 and 2 for the orders of two, 3 to 8 for those of three.

    Raises ValueError where it is no permutation of 0, 1, ...
    """
    n = len(permutation)
    if n == 0 or sorted(permutation) != list(range(n)):
        raise invalid("permutation", got=permutation, wants="each of 0, 1, ... once, up to the number of chunks less 1")
    smaller = [sum(later < own for later in permutation[k + 1 :]) for k, own in enumerate(permutation)]
    rank = sum(c * factorial(n - 1 - k) for k, c in enumerate(smaller))  # (2)
    return sum(factorial(i) for i in range(1, n)) + rank     # (3)


@procedure(
    title="Order of a label",
    source="Ding et al. 2020 (ERNIE-Doc), arXiv:2012.15688, section 3.4",
    example=lambda rng: example(6),
)
def order_of_label(label: Annotated[int, at_least(0)]) -> tuple[int, ...]:
    """The permutation whose class that is: order_label undone."""
    n = 1
    while label >= factorial(n):
        label -= factorial(n)
        n += 1
    left, order = list(range(n)), []
    for k in reversed(range(n)):
        place, label = divmod(label, factorial(k))
        order.append(left.pop(place))
    return tuple(order)


@procedure(
    title="Shuffled chunks",
    source="Ding et al. 2020 (ERNIE-Doc), arXiv:2012.15688, section 3.4",
    example=lambda rng: example(rng.integers(9, size=11), rng=rng, max_chunks=4),
    rejects=[bad("ids", ids=np.arange(3))],
)
def shuffled_chunks(ids: Int[Array, "positions"], *, rng: np.random.Generator, max_chunks: MaxChunks = 4) -> ShuffledChunks:
    """A text cut at random places into at most max_chunks chunks, in a random order, and the class of that order.

    Every number of chunks is as likely as every other, and so is every order of them. No chunk is empty.
    Raises ValueError where the text has fewer tokens than max_chunks.
    """
    if len(ids) < max_chunks:
        raise invalid("ids", got=f"{len(ids)} tokens", wants=f"at least {max_chunks}, one for each chunk")
    n = int(rng.integers(1, max_chunks + 1))
    cuts = np.sort(rng.choice(np.arange(1, len(ids)), n - 1, replace=False))
    permutation = tuple(rng.permutation(n).tolist())         # (4)
    chunks = np.split(ids, cuts)
    text = [chunks[chunk] for chunk in permutation]          # (5)
    return ShuffledChunks(np.concatenate(text), permutation, np.array([len(chunk) for chunk in text]), order_label(permutation))


@concept(
    title="Segment reordering",
    source="Ding et al. 2020 (ERNIE-Doc), arXiv:2012.15688, section 3.4",
    example=lambda rng: example(Linear(rng.normal(size=(5, 9)), rng.normal(size=9)), rng.normal(size=(3, 4, 5)), labels=np.array([0, 8, 4])),
    rejects=[bad(labels=np.array([0, 9, 4])), bad(labels=np.array([0, -1, 4]))],
)
def segment_reordering(params: Linear, x: Float[Array, "*batch positions d_model"], *, labels: Int[Array, "*batch"]) -> tuple[np.floating, Backward]:
    """How surprised a model is by the order of the chunks, in nats: x is what became of the last segment of each text.

    labels are the classes of order_label. params maps the features to logits of the classes, count_orders(m) of them.
    Returns out, a number, the mean over the batch, and backward: dout -> Linear(dweight, dbias), dx.
    Raises ValueError where a label is none of the classes.
    """
    classes = params.weight.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise invalid("labels", got=f"{labels.min()} to {labels.max()}", wants=f"0 to {classes - 1}, the classes of params")
    logits, head_backward = linear(params, x[..., -1, :])    # (6)
    out, loss_backward = cross_entropy(logits, targets=labels)  # (7)

    def backward(dout):
        dlogits = loss_backward(dout)                        # (8)
        dhead, dlast = head_backward(dlogits)                # (10)
        dx = np.zeros_like(x)
        dx[..., -1, :] = dlast                               # (9)
        return dhead, dx

    return out, backward
