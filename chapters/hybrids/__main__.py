"""Hybrids: a recurrence for the long past, attention for what must be exact.

How far windows reach and a recurrence beyond them, what keeps a recurrence from binding values to keys, what one shared block of
attention gives back to it and what a window does, and what a few surprising tokens are worth that are kept word for word.
"""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = ["reach", "plateau", "recall", "window", "eidetic", "cost"]
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
