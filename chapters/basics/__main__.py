"""Basics: what every later chapter is made of, and the few places where it goes wrong.

Linear maps, embeddings, activations, softmax and losses are short. What is worth measuring is what the short formula
hides: a signal that fades or explodes in a chain, repeats in a lookup, digits lost near the ends of a sigmoid, two functions
that share the name GELU, a softmax that overflows, a loss that cannot reach zero, wrong gradients that look right. At the
end the parts are put together into a small network that learns the next character of real text.
"""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = [
        "spread", "depth", "repeats", "activations", "two_gelus", "digits", "overflow", "log_of_softmax", "wrong_backwards", "smoothing",
        "saturation", "one_piece", "next_character", "gate", "by_heart",
    ]  # fmt: skip
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
