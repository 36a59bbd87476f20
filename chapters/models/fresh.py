"""How unsure is a model that has learned nothing?

Radford et al. 2018, section 4.1: every weight starts as a normal number of deviation 0.02, and GPT-2 kept that. So its logits start
near zero, and every character has the same chance. Beside it the same model with weights that start at 0.1, from which it learns
sooner (recipes).
"""

# %%
import numpy as np

from minitransformers import LanguageModelConfig, cross_entropy, init_language_model, language_model
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.training.text import Corpus

section = Section(__file__, __doc__, kind="arithmetic")
LENGTH, WINDOWS, SMALL, WIDE = 64, 32, 0.02, 0.1
corpus = Corpus.load(context=LENGTH)
UNIFORM = np.log(corpus.vocabulary.size)
config = LanguageModelConfig(corpus.vocabulary.size, context=LENGTH, d_model=64, num_layers=2)


# %%
@section.experiment
def experiment(rng):
    ids, following = corpus.batch(rng, batch_size=WINDOWS, context=LENGTH)
    targets = {"any character": rng.integers(corpus.vocabulary.size, size=ids.shape), "the next character": following, "itself": ids}
    for std in (SMALL, WIDE):
        logits, _ = language_model(init_language_model(rng, config, std=std), ids=ids, config=config)
        for name, asked in targets.items():
            yield name, std, {"nats": float(cross_entropy(logits, targets=asked)[0])}


# %%
def told(found, std):
    return ", ".join(f"{name} {mean_and_spread(of[std], '.3f')}" for name, of in found["nats"].items())


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
    paper="Press and Wolf 2017, arXiv:1608.05859, section 3: one table at both ends; the stream still holds the row that was read",
    measured=lambda found: f"from 0.02: {told(found, SMALL)}; from 0.1: {told(found, WIDE)} nats",
)
def itself(found):
    """At both starts the character just read costs at least 0.1 nats less than one drawn at random."""
    return all(found["nats"]["itself"][std] < found["nats"]["any character"][std] - 0.1 for std in (SMALL, WIDE))


@section.report
def report(found):
    rows = [[name, *(float(np.mean(of[std])) for std in (SMALL, WIDE))] for name, of in found["nats"].items()]
    section.table("fresh", ["nats, if asked for", "weights from 0.02", "from 0.1"], rows)
    for name, std in (("small", SMALL), ("wide", WIDE)):
        section.value(f"fresh.{name}", float(np.mean(found["nats"]["any character"][std])))
    section.value("fresh.uniform", UNIFORM)


if __name__ == "__main__":
    section.main()
