"""Does SmolLM2 copy what no text has?

Olsson et al. 2022, arXiv:2209.11895: induction heads go on as the text went on before, whatever it is about. Random tokens stand in a row, which
nobody can expect, and then once more: what follows a token that stood there before? SmolLM2-135M runs in plain NumPy, out of its 4-bit file.
"""

# %%
import numpy as np

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.models.llama import llama
from minitransformers.models.llama_gguf import load_llama_gguf
from minitransformers.models.published import published_file
from minitransformers.reporting import Section, mean_and_spread
from minitransformers.reporting.needs import missing_smollm2

section = Section(__file__, __doc__, kind="trained", needs=missing_smollm2)
ROWS, LENGTH, FIRST, AGAIN = 4, 24, "first", "again"


# %%
@section.experiment
def experiment(rng):
    model = load_llama_gguf(published_file("smollm2"))
    ids = rng.integers(1000, 40_000, size=(ROWS, LENGTH))
    twice = np.concatenate([ids, ids], axis=1)
    logits, _ = llama(model.params, ids=twice, **model.settings)
    losses, _ = cross_entropy(logits[:, :-1], targets=twice[:, 1:], reduction="none")
    yield FIRST, "all", {"nats": losses[:, : LENGTH - 1].mean()}
    yield AGAIN, "all", {"nats": losses[:, LENGTH:].mean()}


# %%
def of(found, when):
    return found["nats"][when]["all"]


@section.claim(
    "It copies what no text has",
    paper="Olsson et al. 2022, arXiv:2209.11895: induction heads go on as the text went on before",
    measured=lambda found: f"nats a random token: {mean_and_spread(of(found, FIRST))}, the second time {mean_and_spread(of(found, AGAIN))}",
)
def copies(found):
    """The second time a row of random tokens comes, each costs at most a quarter of what it cost the first time."""
    return of(found, AGAIN) <= of(found, FIRST) / 4


@section.report
def report(found):
    section.values("in_context.copy", {when: np.mean(of(found, when)) for when in (FIRST, AGAIN)})


if __name__ == "__main__":
    section.main()
