"""Models: parts put together, trained on real text and measured against things that need no network.

The text is Python's language reference, which every Python carries. The last tenth is kept for validation, and all figures are
bits a character on it: how many yes-or-no answers one still needs for each character.
"""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = [
        "fresh", "recipes", "parts", "sizes", "depth_and_width", "recurrence", "waiting", "recurrence_time", "fine_tuning", "labels", "objectives",
        "distillation", "translation", "alignment", "translation_time", "prefixes", "several_tasks", "in_context", "copying", "cache", "curves",
    ]  # fmt: skip
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
