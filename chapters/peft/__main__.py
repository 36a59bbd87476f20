"""Fine-tuning a little: what a few numbers beside a frozen model learn, what they cost, and where they fail."""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = ["methods", "scale", "starts", "tasks", "compression", "smollm2"]
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
