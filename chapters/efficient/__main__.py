"""Efficient attention: the same numbers for less, in training and in writing.

Nothing here computes anything but softmax attention. What changes is what is kept, what is moved and what is used again: tiles in the
place of all scores, and the words that they move; caches for decoding, keys that heads share, a ring for a window, pages of a pool
that many texts live in.
"""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = ["tiles", "scaling", "traffic", "tile_size", "decoding", "sharing", "places", "paging"]
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
