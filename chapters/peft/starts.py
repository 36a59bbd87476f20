"""Does it matter where a prompt or a prefix starts?

Lester et al. 2021, arXiv:2104.08691, section 3.2: words of the vocabulary are a better start than random numbers, less so in large models. Li and
Liang 2021, arXiv:2101.00190, section 7.4: random starts of a prefix vary. Here a model has read four languages, each behind a word that announces
it. That word is taken away, and a prompt or a prefix is trained in its place: it can only choose what the model knows. Five starts of each.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.peft.prefix_attention import prefix_attention
from minitransformers.peft.prefixes import init_prefixes, with_prefixes
from minitransformers.peft.prompt_tuning import init_prompt_tuning, prompt_of_frequent_tokens, prompted
from minitransformers.reporting import Section, mean_and_spread, tried
from minitransformers.reporting import adaptation as at

section = Section(__file__, __doc__, kind="trained")
STARTS, LENGTH = 5, 4
ANNOUNCED, NOTHING, WRONG = "announced", "not announced", "announced as another"


# %% What is trained, and the model behind it
def prompt(trained, ids, base):
    return prompted(trained, base=base, ids=ids, model=at.reader)


def prefix(trained, ids, base):
    tree, back = with_prefixes(*trained, base=base)
    logits, backward = at.reader(tree, ids, core=prefix_attention)
    return logits, lambda dlogits: back(backward(dlogits))


def of_symbols(rng, base, *, length):
    counts = np.r_[np.ones(at.SYMBOLS, int), np.zeros(at.TASKS, int)]  # the words that announce are not to be drawn
    return prompt_of_frequent_tokens(rng, length, base=base.embedding.weight, counts=counts)


def numbers(rng, base, *, std):
    return init_prefixes(rng, num_layers=at.LAYERS, num_kv_heads=at.HEADS, length=LENGTH, d_head=at.WIDTH // at.HEADS, std=std)


WAYS = {
    "prompt of 1, uniform": (lambda rng, base: init_prompt_tuning(rng, 1, at.WIDTH), prompt),
    f"prompt of {LENGTH}, uniform": (lambda rng, base: init_prompt_tuning(rng, LENGTH, at.WIDTH), prompt),
    f"prompt of {LENGTH}, symbols": (partial(of_symbols, length=LENGTH), prompt),
    f"prefix of {LENGTH}, std 0.02": (partial(numbers, std=0.02), prefix),
    f"prefix of {LENGTH}, std 0.5": (partial(numbers, std=0.5), prefix),
}
UNIFORM, SYMBOLS = (name for name in WAYS if name.startswith(f"prompt of {LENGTH}"))


def steps():
    return 10 if section.quick else 100


def lost(name, rng, language, peak):
    base = at.load_announced()
    start, model = WAYS[name]
    run = partial(model, base=base)
    return at.left(at.fine_tuned(start(rng, base), run, language, rng, steps=steps(), peak=peak), run, language)


@section.tuning
def tuning(rng):
    language = at.languages()[int(rng.integers(at.TASKS))]

    def of_two_starts(name, rng, rate):
        return np.mean([lost(name, rng, language, rate) for _ in range(2)])

    yield from tried(of_two_starts, WAYS, (0.03, 0.1, 0.3, 1.0), rng)


@section.experiment
def experiment(rng):
    task = int(rng.integers(at.TASKS))
    base, language = at.load_announced(), at.languages()[task]
    for name, run in ((ANNOUNCED, partial(at.behind, task)), (NOTHING, at.reader), (WRONG, partial(at.behind, (task + 1) % at.TASKS))):
        yield name, 0, {"excess": at.left(base, run, language)}
    for name in WAYS:
        for i in range(2 if section.quick else STARTS):
            yield name, i, {"excess": lost(name, rng, language, section.rates[name])}


def starts(found, name):
    return np.array([found["excess"][name][i] for i in found["excess"][name]])


# %%
@section.report
def report(found):
    rows = [[name, mean_and_spread(found["excess"][name][0], ".3f"), ""] for name in (ANNOUNCED, NOTHING, WRONG)]
    for name in WAYS:
        spread = starts(found, name).std(axis=0)
        rows.append([name, mean_and_spread(starts(found, name).mean(axis=0), ".3f"), mean_and_spread(spread, ".3f")])
    section.table("starts", ["how the language is asked for", "nats too many", f"deviation over {STARTS} starts"], rows)
    for key, name in (("announced", ANNOUNCED), ("nothing", NOTHING), ("one", next(iter(WAYS))), ("uniform", UNIFORM), ("symbols", SYMBOLS)):
        section.value(f"starts.{key}", np.mean(starts(found, name)))


@section.claim(
    "Does one trained vector ask for a language as well as the word that announces it?",
    paper="Lester et al. 2021, arXiv:2104.08691, figure 3: a single token can do much, in the largest model",
    measured=lambda found: f"the word {mean_and_spread(found['excess'][ANNOUNCED][0], '.3f')}, one vector "
    f"{mean_and_spread(starts(found, 'prompt of 1, uniform').mean(axis=0), '.3f')}, nothing {mean_and_spread(found['excess'][NOTHING][0], '.3f')} nats",
)
def one_vector(found):
    """The mean over starts closes at least 0.9 of the gap between no word and the word."""
    gap = found["excess"][NOTHING][0] - found["excess"][ANNOUNCED][0]
    return found["excess"][NOTHING][0] - starts(found, "prompt of 1, uniform").mean() >= 0.9 * gap


@section.claim(
    "Do words of the vocabulary make a better start than uniform numbers?",
    paper="Lester et al. 2021, arXiv:2104.08691, section 3.2 and figure 3b",
    measured=lambda found: ", ".join(f"{name} {mean_and_spread(starts(found, name).mean(axis=0), '.3f')}" for name in (UNIFORM, SYMBOLS)),
)
def words_are_better(found):
    """The mean over starts is lower by more than the larger deviation over starts."""
    return starts(found, UNIFORM).mean() - starts(found, SYMBOLS).mean() > max(starts(found, name).std() for name in (UNIFORM, SYMBOLS))


@section.claim(
    "Is a prefix more sensitive to its start than a prompt of the same length?",
    paper="Li and Liang 2021, arXiv:2101.00190, section 7.4: random starts, low performance with high variance where data is scarce",
    measured=lambda found: "; ".join(f"{name}: deviation {mean_and_spread(starts(found, name).std(axis=0), '.3f')}" for name in WAYS),
)
def prefix_varies_more(found):
    """The smaller of the two deviations of prefixes is above the larger of the two of prompts."""
    prompts = [starts(found, name).std() for name in (UNIFORM, SYMBOLS)]
    return min(starts(found, name).std() for name in WAYS if name.startswith("prefix")) > max(prompts)


if __name__ == "__main__":
    section.main()
