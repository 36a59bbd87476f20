"""How unsure is a model that has learned nothing?

Radford et al. 2018, section 4.1: every weight starts as a normal number of deviation 0.02, and GPT-2 kept that. So its logits start
near zero, and every character has the same chance. Press and Wolf 2017, arXiv:1608.05859: one table of embeddings serves at both
ends. Beside it the same model with weights that start at 0.1, and with a head of its own.
"""

# %%
import numpy as np

from minitransformers import LanguageModelConfig, cross_entropy, init_language_model, language_model
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.training.text import Corpus

section = Section(__file__, __doc__, kind="arithmetic")
LENGTH, WINDOWS, SMALL, WIDE, OWN = 64, 32, "from 0.02", "from 0.1", "from 0.02, a head of its own"
STARTS = {SMALL: (0.02, True), WIDE: (0.1, True), OWN: (0.02, False)}  # deviation, tied
corpus = Corpus.load(context=LENGTH)
UNIFORM = np.log(corpus.vocabulary.size)


# %%
@section.experiment
def experiment(rng):
    ids, following = corpus.batch(rng, batch_size=WINDOWS, context=LENGTH)
    targets = {"any character": rng.integers(corpus.vocabulary.size, size=ids.shape), "the next character": following, "itself": ids}
    for start, (std, tied) in STARTS.items():
        config = LanguageModelConfig(corpus.vocabulary.size, context=LENGTH, d_model=64, num_layers=2, tied=tied)
        logits, _ = language_model(init_language_model(rng, config, std=std), ids=ids, config=config)
        for name, asked in targets.items():
            yield name, start, {"nats": float(cross_entropy(logits, targets=asked)[0])}


# %%
def told(found, start):
    return f"{start}: " + ", ".join(f"{name} {mean_and_spread(of[start], '.3f')}" for name, of in found["nats"].items())


@section.claim(
    "A fresh model is unsure",
    paper="Radford et al. 2018, section 4.1: weights start at N(0, 0.02²), so all logits are near 0",
    measured=lambda found: f"{told(found, SMALL)} nats; ln {corpus.vocabulary.size} = {UNIFORM:.3f}",
)
def unsure(found):
    """For targets drawn at random the loss is within 0.1 of the logarithm of the number of characters."""
    return abs(found["nats"]["any character"][SMALL] - UNIFORM) < 0.1


@section.claim(
    "A tied head expects the character that was just read",
    paper="no paper: Press and Wolf 2017, arXiv:1608.05859, use one table at both ends, and the stream holds the row that was read",
    measured=lambda found: "; ".join(told(found, start) for start in STARTS) + " nats",
)
def itself(found):
    """At both starts it costs at least 0.1 nats less than one drawn at random; with a head of its own the two are within 0.1."""
    less = {start: found["nats"]["any character"][start] - found["nats"]["itself"][start] for start in STARTS}
    return min(less[SMALL], less[WIDE]) > 0.1 and abs(less[OWN]) < 0.1


@section.report
def report(found):
    rows = [[name, *(float(np.mean(of[start])) for start in STARTS)] for name, of in found["nats"].items()]
    section.table("fresh", ["nats, if asked for", *STARTS], rows)
    for name, start in (("small", SMALL), ("wide", WIDE)):
        section.value(f"fresh.{name}", float(np.mean(found["nats"]["any character"][start])))
    section.value("fresh.uniform", UNIFORM)


if __name__ == "__main__":
    section.main()
