"""What does an encoder-decoder save that makes the keys of its source once?

Shazeer 2019, arXiv:1911.02150, section 2.4: written step by step, what was read and written before need not be read again. The Transformer of the
section on translation writes a verse of today token by token: with the keys and values of its source, and of what it has written, kept; and from
the start each time.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.efficient.kv_cache import decode
from minitransformers.models.decoding import without_cache
from minitransformers.models.transformer import transformer, transformer_step
from minitransformers.reporting import Section, shortest_times
from minitransformers.reporting.models.translators import SETTINGS, load_translator
from minitransformers.reporting.models.verses import END, encoded, load_verses, pairs
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="timed")
TOKENS, KEPT, AGAIN = 24, "cached", "from the start"
_, unknown = load_verses()
params = load_translator()


# %%
@section.experiment
def experiment(rng):
    hold_blas()
    verse = pairs([encoded(unknown[rng.permutation(len(unknown))[0]].then)], [[END]])
    steps = {
        KEPT: partial(transformer_step, params, source=verse.source, **SETTINGS),
        AGAIN: without_cache(lambda ids: transformer(params, source=verse.source, target=ids, **SETTINGS)),
    }
    calls = {name: partial(decode, step, verse.target, num_tokens=TOKENS) for name, step in steps.items()}
    for name, seconds in shortest_times(calls, rounds=2 if section.quick else 7).items():
        yield name, "all", {"milliseconds": 1000 * seconds / TOKENS}


# %%
def milliseconds(found, name):
    return np.mean(found["milliseconds"][name]["all"])


@section.claim(
    "Keys of the source that are made once save most of the time",
    paper="Vaswani et al. 2017 say nothing of it; Shazeer 2019, arXiv:1911.02150, section 2.4: decoding step by step",
    measured=lambda found: "milliseconds a token: " + "; ".join(f"{name} {milliseconds(found, name):.2f}" for name in (KEPT, AGAIN)),
)
def cached(found):
    """A token takes at most half of the time that reading everything again takes."""
    return milliseconds(found, KEPT) <= milliseconds(found, AGAIN) / 2


@section.report
def report(found):
    section.values("translation.milliseconds", {key: milliseconds(found, name) for key, name in {"cached": KEPT, "whole": AGAIN}.items()})


if __name__ == "__main__":
    section.main()
