"""Smaller models: fewer weights, fewer bits a weight, smaller students, thinner matrices; what each costs, and what is measured beside it."""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = ["pruning", "heads", "neurons", "bits", "minilm", "smollm2", "low_rank", "comera", "comera_noise", "teachers", "order", "sizes", "sparse_time", "speed"]
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
