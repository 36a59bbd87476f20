"""Hybrids: a recurrence for the long past, attention for what must be exact.

What a state of fixed size forgets, what a window cannot reach, and what a little attention between recurrences, shared
or not, gives back.
"""

# %%
import time

import numpy as np

from minitransformers.cli.chapter import Chapter
from minitransformers.foundation import trees
from minitransformers.hybrids.samba import init_samba, samba
from minitransformers.models.language_model import LanguageModelConfig, init_language_model, language_model
from minitransformers.training.fit import accuracy, fit, loss_on
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.tasks import associative_recall

chapter = Chapter("hybrids", __doc__)
keep_freed_memory()


# %% Reach: how far back a stack of windows sees, and with one recurrence in it
def reach_section():
    rng, window, length = chapter.rng(), 8, 128
    layers = init_samba(rng, 16, num_layers=6, num_heads=2, dtype=np.float64)
    recurrences, windows = layers[0::2], layers[1::2]
    stacks = {
        "3 windows": windows,
        "Mamba below 3 windows": [recurrences[0], *windows],
        "Mamba above 3 windows": [*windows, recurrences[0]],
        "Samba, 6 layers": layers,
        "3 Mamba": recurrences,
    }
    x = rng.normal(size=(length, 16))
    changed = x.copy()
    changed[0] += 1.0
    rows, heard = [], {}
    for name, stack in stacks.items():
        out, after = (samba(stack, a, num_heads=2, window=window)[0] for a in (x, changed))
        change = np.linalg.norm(after - out, axis=-1)
        heard[name] = change
        rows.append([name, int(np.flatnonzero(change)[-1]), *(float(change[k]) for k in (1, 3 * (window - 1), 3 * (window - 1) + 1, length - 1))])
    edge = 3 * (window - 1)
    chapter.table("reach", ["stack", "heard how far", "change at 1", f"at {edge}", f"at {edge + 1}", f"at {length - 1}"], rows)
    chapter.value("reach.window", window)
    chapter.value("reach.edge", edge)
    with chapter.figure("reach") as (_, ax):
        for name, change in heard.items():
            shown = np.where(change > 0, change, np.nan)
            ax.semilogy(np.arange(1, length), shown[1:], label=name)
        ax.axvline(edge, color="#808080", linewidth=0.8, linestyle=":")
        ax.set(xlabel="positions after the change", ylabel="change of the output")
        ax.legend(loc="upper right")
    chapter.claim(
        "Windows hear as far as they reach and no further; one recurrence hears everything",
        paper="Ren et al. 2024, arXiv:2406.07522, section 1: a window's reach is its size times the depth, a state's has no bound",
        expect=f"three windows of {window}: exactly nothing past {edge} positions; with Mamba anywhere in the stack: something at all of {length - 1}",
        measured=f"windows alone: {rows[0][1]} positions, change 0 after; with one Mamba: {rows[1][1]} and {rows[2][1]}, "
        f"and {heard['Samba, 6 layers'][-1]:.0e} in all of Samba",
        holds=rows[0][1] == edge and all(row[1] == length - 1 for row in rows[1:]),
    )


reach_section()


# %% Associative recall: the number of pairs against mixer


# %% B'MOJO: recall with fading memory, with a window, and with an eidetic memory


# %%
if __name__ == "__main__":
    raise SystemExit(chapter.finish())
