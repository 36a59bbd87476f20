"""How many steps of a recurrence, and of attention, must wait for one another?

Vaswani et al. 2017, arXiv:1706.03762, table 1: a recurrent layer takes as many dependent steps as there are positions, attention a fixed number. A
GRU and two blocks of attention, as large as each other, read texts of growing length. Matrix products that wait for one another are counted as they
happen, by arrays that know it.
"""

# %%
import numpy as np

from minitransformers import trees
from minitransformers.reporting import Section, one_seed
from minitransformers.reporting.models.readers import VOCABULARY, attention_reader, recurrent_reader
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="exact")
LENGTHS, GRU, TRANSFORMER = (64, 128, 256, 512, 1024), "GRU", "Transformer"


# %%
class Waiting(np.ndarray):
    """An array that knows how many matrix products had to be done one after the other before it was there."""

    def __array_finalize__(self, source):
        self.after = getattr(source, "after", 0)

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **settings):
        after = max(getattr(array, "after", 0) for array in (*inputs, *out)) + (ufunc is np.matmul)
        inputs, targets = ([np.asarray(a) if isinstance(a, Waiting) else a for a in arrays] for arrays in (inputs, out))
        result = getattr(ufunc, method)(*inputs, **settings, **({"out": tuple(targets)} if out else {}))
        result = out[0] if out and isinstance(out[0], Waiting) else np.asarray(result).view(Waiting)
        result.after = after
        return result


@section.experiment
def experiment(rng):
    hold_blas()
    made = {GRU: recurrent_reader(rng), TRANSFORMER: attention_reader(rng, LENGTHS[-1])}
    for n in LENGTHS[:2] if section.quick else LENGTHS:
        ids = rng.integers(VOCABULARY, size=(1, n))
        for name, (params, _, step) in made.items():
            logits, state = step(trees.map(lambda array: array.view(Waiting), params), ids, None)
            yield name, n, {"chained": (state if name == GRU else logits).after}  # outputs of a GRU are copies of its states


# %%
def told(found):
    return "; ".join(f"{name} " + ", ".join(f"{x:.0f}" for x in one_seed(of).values()) for name, of in found["chained"].items())


@section.claim(
    "In a recurrence every position waits for the one before it, in attention none does",
    paper="Vaswani et al. 2017, arXiv:1706.03762, table 1: n sequential operations, or a fixed number",
    measured=lambda found: f"products that wait for one another, texts of {', '.join(map(str, LENGTHS))}: {told(found)}",
)
def waits(found):
    """Two products a position up to the GRU's last state; seven a layer and the head up to the Transformer's logits, at every length."""
    gru_chains, chains = one_seed(found["chained"][GRU]), one_seed(found["chained"][TRANSFORMER])
    return all(chain == 2 * n for n, chain in gru_chains.items()) and all(chain == 15 for chain in chains.values())


@section.report
def report(found):
    rows = [[name, *(int(x) for x in one_seed(of).values())] for name, of in found["chained"].items()]
    section.table("waiting", ["products that wait for one another, characters:", *map(str, found["chained"][GRU])], rows)


if __name__ == "__main__":
    section.main()
