"""Bias: how it is measured in vectors, scores and decisions, what lowers it and at what cost, and what no measure shows."""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = [
        "associations", "words", "directions", "recovery", "erased", "sentences", "pairs", "pronouns", "census", "behind", "risk",
        "calibrated", "cuts", "minority", "loop", "held_back", "occupations", "neutral", "terms", "probes", "modules", "units",
        "reward", "bans", "equal_shares", "redistribution", "attention", "rewriting", "reranking", "canary",
    ]  # fmt: skip
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
