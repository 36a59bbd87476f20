"""Positions: ways to tell a Transformer where its tokens stand.

A wave added to the input, a learned row added to the input, a rotation of queries and keys, a bias on their scores. What each
knows about distance, what float32 does to far positions, and what happens to a model that is trained on short texts and
meets long ones.
"""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = ["sinusoids", "relative", "decay", "layouts", "angles", "counting", "long_text", "documents"]
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
