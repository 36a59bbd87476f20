"""Attention: each position reads from the others by content.

What the formula promises can be measured: why scores are divided by √d, what attention cannot know without positions, how
far a stack of windows sees and what it costs, what a cap leaves of a gradient, what happens when a trained model must
share its keys, and what becomes of focus, norms and learning when another weighting takes the softmax's place.
"""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = [
        "scale", "masks", "symmetries", "alignment", "reach", "depth", "windows", "blocks", "decoding", "sharing", "soft_cap", "fading",
        "retrieval", "frobenius", "weightings",
    ]  # fmt: skip
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
