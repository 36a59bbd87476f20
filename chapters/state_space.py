"""State spaces: what a state of fixed size can carry along a text, and the matrices that such a recurrence is.

Linear systems in their two views, the selective scan and what it selects, the duality of recurrence and attention in
numbers, what each form costs as the text grows, and models with each on real text.
"""

# %%
from minitransformers.cli.chapter import Chapter

chapter = Chapter("state_space", __doc__)


# %% Linear systems: two views of one map, and what HiPPO's matrix remembers


# %% S4D: a delay, learned


# %% Scans: one recurrence, three orders of work


# %% Duality: one map in three forms, and the ranks of its matrix


# %% Time against length: scan, SSD and attention


# %% Decoding: a state of fixed size against a cache that grows


# %% Selective copying: what a system that cannot choose cannot do


# %% Induction heads: trained at 64, read up to 1,024


# %% Real text: bits a character beside attention


# %%
if __name__ == "__main__":
    raise SystemExit(chapter.finish())
