"""Can one model do two tasks that are told apart by nothing but the first token?

Raffel et al. 2020, arXiv:1910.10683, section 2.1: every task is a text, and a prefix says which is meant; section 3.5.2 asks what a mixture of
tasks costs each of them. Here verses in today's English are either put into the English of 1382 or repeated as they are: the source does not
tell which is wanted. One T5 learns both, by two prefixes, from batches of the one and of the other in turns; two T5s of the same size learn one
each, from as many batches of their task. So the one model has half the parameters for the same work.
"""

# %%

import numpy as np

from minitransformers import trees
from minitransformers.models.t5 import init_t5, t5
from minitransformers.models.tokenizers.byte_pair_encoding import byte_pair_encode
from minitransformers.reporting import Section, bits, mean_and_spread, processor_seconds
from minitransformers.reporting.verses import Padded, labels, load_verses, padded, verse_vocabulary
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled, labelled_loss
from minitransformers.training.threads import hold_blas
from minitransformers.training.yardsticks import counted

section = Section(__file__, __doc__, kind="trained")
WIDTH, LAYERS, HEADS, STEPS, BATCH = 64, 2, 4, 500, 16
BACK, REPEAT, BOTH = "into the English of 1382", "as it is", "one model for both"
PREFIXES = {BACK: "to 1382: ", REPEAT: "to today: "}
known, unknown = load_verses()
vocabulary = verse_vocabulary(known)


def pairs_of(verses, task, prefix):
    """What is read, with a prefix in front, and what is to be written."""
    told = byte_pair_encode(PREFIXES[prefix], vocabulary=vocabulary).tolist()
    source = padded([verse.now for verse in verses], vocabulary=vocabulary, prefix=told)
    return source, padded([verse.then if task == BACK else verse.now for verse in verses], vocabulary=vocabulary, start=True)


LEARNED = {task: pairs_of(known, task, task) for task in PREFIXES}
PAIRS = {task: counted(*("\n".join(v.then if task == BACK else v.now for v in verses) for verses in (known, unknown)))["bigram"] for task in PREFIXES}


# %%
def cut(pair, rows):
    """Some of the pairs, as long as the longest of them."""
    chosen = [Padded(side.ids[rows], side.real[rows]) for side in pair]
    return [Padded(*(array[:, : side.real.sum(-1).max()] for array in side)) for side in chosen]


def model(params, inputs):
    source, ids = inputs
    return t5(params, source=source.ids, target=ids, num_heads=HEADS, mask=source.real[:, None, None, :])


def trained(tasks, rng, *, rate, learned=LEARNED):
    """A T5 after STEPS batches of each of the tasks, in turns."""
    turn = iter(np.arange(STEPS * len(tasks)) % len(tasks))

    def draw(rng):
        pairs = learned[tasks[next(turn)]]
        source, target = cut(pairs, rng.integers(len(pairs[0].ids), size=BATCH))
        ids, targets = labels(target)
        return (source, ids), targets

    params = init_t5(rng, vocabulary=640, d_model=WIDTH, num_layers=LAYERS, num_heads=HEADS, d_head=WIDTH // HEADS, d_hidden=2 * WIDTH)
    steps = 4 if section.quick else STEPS * len(tasks)
    return fit(params, Labelled(model, draw), steps=steps, peak=rate, rng=rng, warmup=0.2, floor=0.02)


def bits_of(params, task, prefix, verses=unknown):
    """Bits a character of what should be written, its end included."""
    pairs, total = pairs_of(verses, task, prefix), 0.0
    for start in range(0, len(verses), 48):
        source, target = cut(pairs, slice(start, start + 48))
        ids, targets = labels(target)
        total += float(labelled_loss(*model(params, (source, ids)), targets)[0][0])
    return bits(total / sum(len(verse.then if task == BACK else verse.now) + 1 for verse in verses))


CONTESTANTS = {BACK: (BACK,), REPEAT: (REPEAT,), BOTH: (BACK, REPEAT)}


@section.tuning
def tuning(rng):
    hold_blas()
    order = rng.permutation(len(known))
    held = [known[i] for i in order[:150]]
    own = {task: cut(pairs, order[150:]) for task, pairs in LEARNED.items()}
    for name, tasks in CONTESTANTS.items():
        for rate in (5e-3,) if section.quick else (2.5e-3, 5e-3, 1e-2, 2e-2):
            params = trained(tasks, np.random.default_rng(rng.integers(2**32)), rate=rate, learned=own)
            yield name, rate, {"loss": np.mean([bits_of(params, task, task, held) for task in tasks])}


@section.experiment
def experiment(rng):
    hold_blas()
    for name, tasks in CONTESTANTS.items():
        with processor_seconds() as spent:
            params = trained(tasks, rng, rate=section.rates[name])
        yield name, "training", {"parameters": trees.count_parameters(params), "seconds": spent()}
        for task in tasks:
            yield name, task, {"bits": bits_of(params, task, task)}
            if name == BOTH:                                 # the text of one task behind the prefix of the other
                yield name, task, {"wrong": bits_of(params, task, next(other for other in PREFIXES if other != task))}


# %%
def told(found, task):
    return f"{task}: alone {mean_and_spread(found['bits'][task][task])}, with the other task {mean_and_spread(found['bits'][BOTH][task])}"


@section.claim(
    "A prefix decides what is written",
    paper="Raffel et al. 2020, arXiv:1910.10683, section 2.1: the prefix specifies the task",
    measured=lambda found: "; ".join(
        f"{task}: {mean_and_spread(found['bits'][BOTH][task])} bits a character, behind the other's prefix {mean_and_spread(found['wrong'][BOTH][task])}" for task in PREFIXES
    ),
)
def decides(found):
    """In the one model both tasks cost at least half a bit a character more behind the other's prefix."""
    return all(found["wrong"][BOTH][task] >= found["bits"][BOTH][task] + 0.5 for task in PREFIXES)


@section.claim(
    "Does one model for both do each as well as a model of its own?",
    paper="Raffel et al. 2020, arXiv:1910.10683, section 3.5.2: learning several tasks at once does a little worse on most",
    measured=lambda found: "; ".join(told(found, task) for task in PREFIXES),
)
def as_well(found):
    """After as many batches of each task, it needs at most 0.1 bits a character more than each of the two."""
    return all(found["bits"][BOTH][task] <= found["bits"][task][task] + 0.1 for task in PREFIXES)


@section.report
def report(found):
    rows = []
    for name in CONTESTANTS:
        size, seconds = (np.mean(found[measure][name]["training"]) for measure in ("parameters", "seconds"))
        cells = [mean_and_spread(found["bits"][name][task]) if task in found["bits"][name] else None for task in PREFIXES]
        rows.append([f"T5, {name}", f"{section.rates[name]:g}", int(size), float(f"{seconds:.1f}"), *cells])
    rows.append(["the last of them, behind the other's prefix", "", None, None, *(mean_and_spread(found["wrong"][BOTH][task]) for task in PREFIXES)])
    rows.append(["counted pairs of characters", "", None, None, *(f"{PAIRS[task]:.2f}" for task in PREFIXES)])
    section.table("prefixes", ["model", "rate", "parameters", "processor seconds", *(f"{task}, bits a character" for task in PREFIXES)], rows)
    for key, task in {"back": BACK, "repeat": REPEAT}.items():
        section.values(f"prefixes.{key}", {"alone": np.mean(found["bits"][task][task]), "both": np.mean(found["bits"][BOTH][task]), "wrong": np.mean(found["wrong"][BOTH][task])})
    section.value("prefixes.steps", STEPS)


if __name__ == "__main__":
    section.main()
