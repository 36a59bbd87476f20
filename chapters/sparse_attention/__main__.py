"""Sparse attention: chosen pairs of positions in the place of all.

Windows with a few global tokens, strides, random blocks, hashes, clusters and blocks that a query selects: what each lets through,
what it costs, and what it finds that a window does not.
"""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    raise SystemExit(run_chapter(__file__, __doc__, order=["scaling", "flag", "match", "kept", "chosen", "reversible"]))
