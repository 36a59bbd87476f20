"""Hybrids: a recurrence for the long past, attention for what must be exact.

What a state of fixed size forgets, what a window cannot reach, and what a little attention between recurrences, shared
or not, gives back.
"""

# %%
from minitransformers.cli.chapter import Chapter

chapter = Chapter("hybrids", __doc__)


# %% Reach: how far back a stack of windows sees, and with one recurrence in it


# %% Associative recall: the number of pairs against mixer


# %% B'MOJO: recall with fading memory, with a window, and with an eidetic memory


# %%
if __name__ == "__main__":
    raise SystemExit(chapter.finish())
