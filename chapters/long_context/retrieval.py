"""One sentence of two hundred has the answer: who finds it?

Robertson and Zaragoza 2009: BM25 finds what has the words of the question. Karpukhin et al. 2020, arXiv:2004.04906: vectors that have learned which
question belongs to which text find what means the same. Lewis et al. 2020, arXiv:2005.11401: answers alone can teach that, through the probability
of each text. A text has 200 sentences of twelve words and, at the end of each, one of eight answers. A question has four words of one sentence, as
they are, or each replaced by its synonym. A reader sees ten sentences, the first ten or those that were found, and says the answer.
"""

# %%
import numpy as np

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.basics.softmax import softmax
from minitransformers.reporting import Section, mean_and_spread, tried
from minitransformers.reporting.long_context.questions import (
    ANSWERS,
    by_answers,
    by_pairs,
    by_vectors,
    by_words,
    draw_questions,
    init_tables,
    other_words,
    read,
)
from minitransformers.training.fit import fit

section = Section(__file__, __doc__, kind="trained")
SENTENCES, READ, QUESTIONS, STEPS = 200, 10, 200, 200
FIRST, SAME, OTHER = "the first ten", "BM25, the same words", "BM25, synonyms"
UNTRAINED, PAIRS, ONLY, FOREIGN = "vectors, untrained", "vectors, taught by pairs", "vectors, taught by answers alone", "vectors taught by pairs, the same words"
KEYS = {"first": FIRST, "same": SAME, "other": OTHER, "untrained": UNTRAINED, "pairs": PAIRS, "only": ONLY, "foreign": FOREIGN}


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


@section.tuning
def tuning(rng):
    synonyms = other_words(rng)

    def loss(name, rng, rate):
        tables = taught(name, rng, synonyms, rate=rate)
        words, _, asked, _, question = draw_questions(rng, synonyms, texts=QUESTIONS, sentences=SENTENCES)
        log_p, _ = log_softmax(by_vectors(tables, words, question))
        return -log_p[np.arange(QUESTIONS), asked].mean()

    yield from tried(loss, WAYS, (1e-2,) if section.quick else (3e-3, 1e-2, 3e-2, 1e-1), rng)


@section.experiment
def experiment(rng):
    synonyms = other_words(rng)
    tables = {UNTRAINED: init_tables(rng), **{name: taught(name, rng, synonyms, rate=section.rates[name]) for name in WAYS}}
    words, answers, asked, same, question = draw_questions(rng, synonyms, texts=20 if section.quick else QUESTIONS, sentences=SENTENCES)
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
