"""State spaces: what a state of fixed size can carry along a text, and the matrices that such a recurrence is.

Linear systems in their two views, and what HiPPO's matrix remembers; the selective scan and the orders of its work; the duality of
recurrence and attention in numbers; what each form costs as the text grows; and what models learn with a state that selects, at two tasks
made for it and on real text.
"""

from minitransformers.reporting import run_chapter

if __name__ == "__main__":
    order = [
        "views", "rules", "hippo", "delay", "powers", "selection", "scans", "orders", "forms", "ranks", "decays", "length", "memory", "decoding",
        "copying", "gates", "induction", "text", "writing",
    ]  # fmt: skip
    raise SystemExit(run_chapter(__file__, __doc__, order=order))
