"""Learning rate over a run: a straight line up, then half a cosine down to a floor.

Sources: half a cosine, Loshchilov and Hutter 2016, arXiv:1608.03983, eq. 5 (without restarts); warm-up, Goyal et al.
2017, arXiv:1706.02677, section 2.2. Differs from Hugging Face: updates are counted from 1, so no update has rate zero,
and the last one has exactly the floor.

    rate(t) = peak t / warmup                                            for t <= warmup
    rate(t) = peak (floor + (1 - floor) (1 + cos(pi progress)) / 2)      after
    progress = (t - warmup) / (steps - warmup)
"""

import math

from minitransformers.foundation import invalid


def warmup_cosine(step: int, *, peak: float, steps: int, warmup: int = 0, floor: float = 0.0) -> float:
    """The learning rate of update ``step``; updates are counted from 1 to ``steps``.

    warmup (updates, from 0 to steps) climbs to peak; floor is the part of peak, from 0 to 1, that is left at the end and
    after it. Raises ValueError for values outside these ranges and a negative step.
    """
    if step < 0:
        raise invalid("step", got=step, wants="a number of at least 0")
    if not 0 <= warmup <= steps:
        raise invalid("warmup", got=warmup, wants=f"a number from 0 to the {steps} steps")
    if not 0 <= peak < math.inf:
        raise invalid("peak", got=peak, wants="a finite rate of at least 0")
    if not 0 <= floor <= 1:
        raise invalid("floor", got=floor, wants="a part from 0 to 1")
    if step < warmup:
        return peak * step / warmup
    progress = min(1.0, (step - warmup) / (steps - warmup)) if steps > warmup else float(step > warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
