"""Smaller models: fewer weights, fewer bits a weight, smaller students, thinner matrices; what each costs, and what is measured beside it."""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = ["pruning", "bits", "comera"]
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
