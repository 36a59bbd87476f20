"""Norms: keeping every layer's input at one scale, and what it buys.

What each norm forgets of its input, how depth, the place of the norm and the size of the first weights decide gradients and steps,
what dropping the mean saves, and how models with each norm and without one learn real text.
"""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = ["forgets", "plane", "cost", "depth", "one_step", "start", "text", "scores", "rates", "fix_norm"]
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
