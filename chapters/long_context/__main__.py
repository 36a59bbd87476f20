"""Long texts: cut where it hurts least, searched for what matters, or read piece by piece with a memory; what each reaches, and what it costs."""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = ["chunks", "retrieval", "graph", "recall", "asked_last", "reach", "methods", "text", "telling", "replay"]
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
