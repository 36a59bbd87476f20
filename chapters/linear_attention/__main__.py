"""Attention in linear time: what is kept of the past when the past may not be kept.

Features whose products stand for scores, mixtures that stand for keys, states that fade, gates that say what fades, and a memory
that overwrites. How far each is from the softmax it replaces, what it costs, and how much of a text it can recall.
"""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = ["mixtures", "estimates", "features", "forms", "overwriting", "recall", "mixers"]
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
