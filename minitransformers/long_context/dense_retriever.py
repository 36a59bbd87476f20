"""Dense retriever: queries and documents as vectors, trained so that a query lies nearest to its own document.

Words that mean the same share nothing when words are counted. As vectors they can lie close together, if somebody has taught them to.
The lesson is a choice: which document of the batch belongs to this query? The documents of the other queries are the wrong answers, and
they cost nothing, for they are in memory already. More wrong answers, chosen to be hard, may stand behind them.

Source: Karpukhin et al. 2020 (DPR), arXiv:2004.04906, section 3.2, where products are not normalised and temperature is 1; cosines
with a temperature are those of Chen et al. 2020, arXiv:2002.05709. Costs a product of (queries, d_model) with (d_model, documents),
and two such backward. tau is the temperature, p_i the document of query i, y_ij = [j = p_i], B the number of queries.

    a = q / |q|, b likewise of the documents; with similarity "dot" both as they are   (1)
    scores = a b^T / tau                                     (2)
    log_p = log softmax of scores over the documents         (3)
    out = -(1/B) sum_i log_p_(i, p_i)                        (4)
    dscores = dout/B (p - y)                                 (5)
    da = dscores b / tau, db = dscores^T a / tau             (6)
    dq = (da - a (a . da)) / |q|, the documents likewise     (7)

To search is to take the k largest scores. That is done a block of documents at a time:

    best = the k best of (best, block)                       (8)
"""

from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.foundation import Backward, at_least, bad, concept, example, finite, invalid, positive, procedure
from minitransformers.long_context.passage_selection import Found, top_documents


@concept(
    title="Dense retriever",
    source="Karpukhin et al. 2020 (DPR), arXiv:2004.04906, section 3.2",
    example=lambda rng: example(rng.normal(size=(3, 4)), rng.normal(size=(5, 4)), positives=np.array([0, 3, 0]), temperature=0.5),
    rejects=[
        bad(positives=np.array([0, 5, 1])), bad(positives=np.array([0, -1, 1])), bad("documents", documents=np.ones((2, 4)), positives=None),
        bad(queries=np.zeros((3, 4))), bad(documents=np.zeros((5, 4))), bad(queries=np.full((3, 4), np.nan)), bad(documents=np.full((5, 4), np.inf)),
    ],
)  # fmt: skip
def dense_retriever(
    queries: Annotated[Float[Array, "queries d_model"], finite], documents: Annotated[Float[Array, "documents d_model"], finite], *,
    positives: Int[Array, "queries"] | None = None, temperature: Annotated[float, positive] = 1.0, similarity: Literal["cosine", "dot"] = "cosine",
) -> tuple[Any, Backward]:  # fmt: skip
    """Mean cross-entropy, in nats, of choosing for each query its own among all documents of the batch.

    positives are the rows of the documents that belong to the queries (None: the i-th to the i-th; rows behind those are wrong for
    all). Two queries may share a document; one that stands in two rows counts as wrong for itself.
    Returns out, a scalar, and backward: dout -> dqueries, ddocuments.
    Raises ValueError where there are fewer documents than queries and positives are not given, where a positive is no row of the
    documents, and with similarity "cosine" for a row of length 0.
    """
    if positives is None:
        if len(documents) < len(queries):
            raise invalid("documents", got=f"{len(documents)} for {len(queries)} queries", wants="one for each, or positives")
        positives = np.arange(len(queries))
    elif positives.min() < 0 or positives.max() >= len(documents):
        raise invalid("positives", got=f"numbers from {positives.min()} to {positives.max()}", wants=f"rows from 0 to {len(documents) - 1}")
    a, a_backward = _directions("queries", queries, similarity)
    b, b_backward = _directions("documents", documents, similarity)  # (1)
    scores = (a @ b.T) / temperature                         # (queries, documents)  (2)
    out, choice_backward = cross_entropy(scores, targets=positives)  # (3) (4)

    def backward(dout):
        dscores = choice_backward(dout)                      # (5)
        da, db = dscores @ b / temperature, dscores.T @ a / temperature  # (6)
        return a_backward(da), b_backward(db)

    return out, backward


def _directions(name: str, rows: Array, similarity: str) -> tuple[Array, Backward]:
    """Rows of length 1, or the rows as they are."""
    if similarity == "dot":
        return rows, lambda drows: drows
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not length.all():
        raise invalid(name, got="a row of length 0", wants="rows that point somewhere")
    unit = rows / length

    def backward(dunit):
        along = (unit * dunit).sum(axis=-1, keepdims=True)
        return (dunit - unit * along) / length               # what would only make it longer is lost  (7)

    return unit, backward


@procedure(
    title="Nearest documents",
    source="Karpukhin et al. 2020 (DPR), arXiv:2004.04906, section 3.1",
    example=lambda rng: example(rng.normal(size=(3, 4)), rng.normal(size=(7, 4)), k=2, block=3),
    rejects=[bad(k=8), bad(queries=np.zeros((3, 4))), bad(documents=np.zeros((7, 4))), bad(documents=np.full((7, 4), np.nan)), bad(queries=np.zeros((0, 4)))],
)
def nearest_documents(
    queries: Annotated[Float[Array, "queries d_model"], finite], documents: Annotated[Float[Array, "documents d_model"], finite], *,
    k: Annotated[int, at_least(1)], similarity: Literal["cosine", "dot"] = "cosine", block: Annotated[int, at_least(1)] = 4096,
) -> Found:  # fmt: skip
    """The ``k`` documents that lie nearest to each query, the best first; of equals those with the smaller numbers.

    All documents are compared, so many at a time as block says: memory for scores is (queries, block). The scores that are returned
    are cosines or products, without a temperature, which would not change their order.
    Raises ValueError where there are fewer than k documents, and with similarity "cosine" for a row of length 0.
    """
    if k > len(documents):
        raise invalid("k", got=k, wants=f"at most {len(documents)}, as many as there are documents")
    a, _ = _directions("queries", queries, similarity)
    b, _ = _directions("documents", documents, similarity)
    numbers, scores = np.empty((len(a), 0), int), np.empty((len(a), 0), a.dtype)
    for start in range(0, len(b), block):
        part = a @ b[start : start + block].T
        here = np.broadcast_to(np.arange(start, start + part.shape[1]), part.shape)
        numbers, scores = np.concatenate([numbers, here], axis=-1), np.concatenate([scores, part], axis=-1)
        places, scores = top_documents(scores, k=min(k, scores.shape[1]))
        numbers = np.take_along_axis(numbers, places, axis=-1)  # (8)
    return Found(numbers, scores)
