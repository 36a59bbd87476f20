"""One sentence of two hundred has the answer: who finds it?

Robertson and Zaragoza 2009: BM25 finds what has the words of the question. Karpukhin et al. 2020, arXiv:2004.04906: vectors that have learned which
question belongs to which text find what means the same. Lewis et al. 2020, arXiv:2005.11401: answers alone can teach that, through the probability
of each text. A text has 200 sentences of twelve words and, at the end of each, one of eight answers. A question has four words of one sentence, as
they are, or each replaced by its synonym. A reader sees ten sentences, the first ten or those that were found, and says the answer.
"""

# %%
import numpy as np

from minitransformers.basics.embedding import Embedding, embedding
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.basics.softmax import softmax
from minitransformers.long_context.bm25 import bm25, bm25_index
from minitransformers.long_context.dense_retriever import dense_retriever
from minitransformers.long_context.retrieve_then_read import retrieve_then_read
from minitransformers.reporting import Section, mean_and_spread, tried
from minitransformers.training.fit import fit
from minitransformers.training.task import FromLoss

section = Section(__file__, __doc__, kind="trained")
WORDS, ANSWERS, SENTENCES, LENGTH, ASKED, WIDTH, READ = 800, 8, 200, 12, 4, 64, 10
QUESTIONS, STEPS, BATCH, SHARPNESS, SURE = 200, 200, 128, 0.05, 0.95
FIRST, SAME, OTHER = "the first ten", "BM25, the same words", "BM25, synonyms"
UNTRAINED, PAIRS, ONLY, FOREIGN = "vectors, untrained", "vectors, taught by pairs", "vectors, taught by answers alone", "vectors taught by pairs, the same words"
KEYS = {"first": FIRST, "same": SAME, "other": OTHER, "untrained": UNTRAINED, "pairs": PAIRS, "only": ONLY, "foreign": FOREIGN}


# %% Texts and questions
def draw(rng, synonyms, *, texts, sentences):
    """Words (texts, sentences, 12), an answer each, which sentence is asked for, and the question with words replaced (texts, 4)."""
    words = rng.integers(WORDS, size=(texts, sentences, LENGTH))
    asked = rng.integers(sentences, size=texts)
    places = np.argsort(rng.random((texts, LENGTH)), axis=1)[:, :ASKED]
    same = np.take_along_axis(words[np.arange(texts), asked], places, axis=1)
    return words, rng.integers(ANSWERS, size=(texts, sentences)), asked, same, synonyms[same]


def read(answers):
    """What a reader says of each sentence, as log-probabilities of the answers: sure of what stands there, and never quite."""
    rest = (1 - SURE) / (ANSWERS - 1)
    return np.log(np.where(np.arange(ANSWERS) == answers[..., None], SURE, rest))


# %% Vectors: the mean of a text's words, in a table for questions and one for sentences
def init_tables(rng):
    return [Embedding((rng.standard_normal((WORDS, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)) for _ in range(2)]


def encoded(table, ids):
    vectors, backward = embedding(table, ids=ids)
    count = ids.shape[-1]
    return vectors.mean(axis=-2), lambda dout: backward(np.repeat(dout[..., None, :] / count, count, axis=-2))


def by_pairs(rng, synonyms):
    """The loss of finding the sentence of each question among those of all."""

    def loss(tables):
        words, _, _, _, question = draw(rng, synonyms, texts=BATCH, sentences=1)
        (asks, asks_backward), (says, says_backward) = encoded(tables[0], question), encoded(tables[1], words[:, 0])
        value, backward = dense_retriever(asks, says, temperature=SHARPNESS)
        dasks, dsays = backward(np.float32(1.0))
        return value, [asks_backward(dasks), says_backward(dsays)]

    return FromLoss(loss)


def by_answers(rng, synonyms):
    """The loss of the answer, over the sentences of a text of 32; nobody says which of them has it."""

    def loss(tables):
        words, answers, asked, _, question = draw(rng, synonyms, texts=BATCH // 2, sentences=32)
        (asks, asks_backward), (says, says_backward) = encoded(tables[0], question), encoded(tables[1], words)
        scores = (says @ asks[..., None])[..., 0] / SHARPNESS
        right = np.take_along_axis(answers, asked[:, None], axis=1)
        log_probs = np.take_along_axis(read(answers), right[..., None], axis=-1).astype(np.float32)  # (texts, sentences, 1)
        value, backward = retrieve_then_read(scores, log_probs)
        dscores = backward(np.float32(1.0))[0] / SHARPNESS
        return value, [asks_backward((dscores[..., None] * says).sum(axis=1)), says_backward(dscores[..., None] * asks[:, None])]

    return FromLoss(loss)


WAYS = {PAIRS: (by_pairs, STEPS), ONLY: (by_answers, 3 * STEPS)}


def taught(name, rng, synonyms, *, rate):
    task, steps = WAYS[name]
    return fit(init_tables(rng), task(rng, synonyms), steps=5 if section.quick else steps, peak=rate, rng=rng, warmup=0.1)


# %% What is found, and what is answered
def judged(scores, answers, asked):
    """Of questions: is the sentence found first, is it among ten, and is the answer right that ten readers give together?"""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :READ]
    found = order == asked[:, None]
    weights = softmax(np.take_along_axis(scores, order, axis=1))[0]
    said = (weights[..., None] * np.exp(read(np.take_along_axis(answers, order, axis=1)))).sum(axis=1).argmax(axis=-1)
    right = np.take_along_axis(answers, asked[:, None], axis=1)[:, 0]
    return {"first": found[:, 0].mean(), "found": found.any(axis=1).mean(), "right": (said == right).mean()}


def by_words(words, questions, rng):
    """BM25's scores, and of equals in an order by lot."""
    scores = np.array([bm25(bm25_index(list(text)), question) for text, question in zip(words, questions, strict=True)])
    return scores + 1e-9 * rng.random(scores.shape)


def by_vectors(tables, words, questions):
    asks, says = encoded(tables[0], questions)[0], encoded(tables[1], words)[0]
    unit = [part / np.linalg.norm(part, axis=-1, keepdims=True) for part in (asks, says)]
    return (unit[1] @ unit[0][..., None])[..., 0] / SHARPNESS


def other_words(rng):
    """A synonym for each word, never itself."""
    order = rng.permutation(WORDS)
    synonyms = np.empty(WORDS, int)
    synonyms[order] = np.roll(order, 1)
    return synonyms


@section.tuning
def tuning(rng):
    synonyms = other_words(rng)

    def loss(name, rng, rate):
        tables = taught(name, rng, synonyms, rate=rate)
        words, _, asked, _, question = draw(rng, synonyms, texts=QUESTIONS, sentences=SENTENCES)
        log_p, _ = log_softmax(by_vectors(tables, words, question))
        return -log_p[np.arange(QUESTIONS), asked].mean()

    yield from tried(loss, WAYS, (1e-2,) if section.quick else (3e-3, 1e-2, 3e-2, 1e-1), rng)


@section.experiment
def experiment(rng):
    synonyms = other_words(rng)
    tables = {UNTRAINED: init_tables(rng), **{name: taught(name, rng, synonyms, rate=section.rates[name]) for name in WAYS}}
    words, answers, asked, same, question = draw(rng, synonyms, texts=20 if section.quick else QUESTIONS, sentences=SENTENCES)
    places = -np.arange(SENTENCES)[None] * 1e-3 + np.zeros((len(words), 1))
    scores = {FIRST: places, SAME: by_words(words, same, rng), OTHER: by_words(words, question, rng)}
    scores |= {name: by_vectors(of, words, question) for name, of in tables.items()}
    scores[FOREIGN] = by_vectors(tables[PAIRS], words, same)
    for name, of in scores.items():
        yield name, 0, judged(of, answers, asked)


# %%
def told(found, *names, measure="found"):
    return "; ".join(f"{name} {mean_and_spread(found[measure][name][0], '.3f')}" for name in names)


@section.claim(
    "Words find words, and only words", paper="Robertson and Zaragoza 2009, section 3: a text scores for the words of the query that it has",
    measured=lambda found: f"among ten: {told(found, SAME, OTHER)}; chance {READ / SENTENCES}",
)  # fmt: skip
def words_find(found):
    """With the same words BM25 has the sentence among ten in at least 0.99 of cases, with synonyms in at most 0.12."""
    return found["found"][SAME][0] >= 0.99 and found["found"][OTHER][0] <= 0.12


@section.claim(
    "Vectors that learned from pairs find synonyms", paper="Karpukhin et al. 2020, arXiv:2004.04906, section 5: ahead of BM25 where words differ",
    measured=lambda found: f"among ten: {told(found, UNTRAINED, PAIRS)}; first: {told(found, PAIRS, measure='first')}",
)  # fmt: skip
def vectors_find(found):
    """Among ten in at least 0.95 of cases; untrained in at most 0.12."""
    return found["found"][PAIRS][0] >= 0.95 and found["found"][UNTRAINED][0] <= 0.12


@section.claim(
    "And what they have not learned they do not find: the words themselves", paper="Thakur et al. 2021, arXiv:2104.08663: dense retrievers out of their domain fall behind BM25",
    measured=lambda found: f"among ten: {told(found, FOREIGN, SAME)}",
)  # fmt: skip
def nothing_else(found):
    """Asked with the very words of the sentence they have it among ten in at most 0.12 of cases."""
    return found["found"][FOREIGN][0] <= 0.12


@section.claim(
    "Answers alone teach a retriever", paper="Lewis et al. 2020, arXiv:2005.11401, section 2.4: no supervision on what document should be retrieved",
    measured=lambda found: f"among ten: {told(found, ONLY, PAIRS)}; answered: {told(found, ONLY, PAIRS, measure='right')}",
)  # fmt: skip
def answers_teach(found):
    """Taught by answers alone the vectors have the sentence among ten in at least 0.9 of cases."""
    return found["found"][ONLY][0] >= 0.9


@section.report
def report(found):
    rows = [[name, *(mean_and_spread(found[measure][name][0], ".3f") for measure in ("first", "found", "right"))] for name in KEYS.values()]
    rows.append(["chance", f"{1 / SENTENCES:.3f}", f"{READ / SENTENCES:.3f}", f"{1 / ANSWERS:.3f}"])
    section.table("retrieval", ["ten sentences of 200 by", "found first", "found", "answered rightly"], rows)
    for key, name in KEYS.items():
        section.values(f"retrieval.{key}", {measure: found[measure][name][0].mean() for measure in ("first", "found", "right")})
    section.values("retrieval", {"steps": STEPS, "sentences": SENTENCES, "read": READ})


@section.figure("retrieval", size=(5, 3.4))
def picture(ax, found):
    for name in KEYS.values():
        ax.plot(np.atleast_1d(found["found"][name][0]), np.atleast_1d(found["right"][name][0]), "o", label=name)
    ax.plot([0, 1], [1 / ANSWERS, 1], color="0.5", linestyle=":")
    ax.set(xlabel=f"sentence among {READ} that are read", ylabel="answers that are right", xlim=(0, 1.05), ylim=(0, 1.05))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
