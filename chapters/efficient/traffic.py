"""When do tiles move less between a large slow memory and a small fast one?

Dao et al. 2022, arXiv:2205.14135, theorem 2: attention with its scores in slow memory moves about n d + n^2 words, FlashAttention
n^2 d^2 / M with a fast memory of M. So it depends on M which of the two moves less. Words are counted in runs, and by formula where runs
would be long.
"""

# %%
import numpy as np

from minitransformers.efficient.memory_traffic import attention_with_traffic, memory_traffic
from minitransformers.reporting import Section, fitted_exponent, level, lines, ticks_at

section = Section(__file__, __doc__, kind="exact")
ORDERS = {"standard": "scores in slow memory", "flash1": "tiles, keys outside", "flash2": "tiles, queries outside"}
SQUARES = {"flash1": 3, "flash2": 2}                         # of the width: the fast memory at which tiles should begin to pay
WIDTH, LENGTH, FAR, WIDTHS = 64, 16_384, 2**20, (32, 64, 128)
FAST, LENGTHS = (4096, 8192, 16_384, 32_768, 49_152, 98_304, 196_608), (256, 1024, 4096, 16_384, 65_536)
CHIP = 49_152                                                # words of 4 bytes in 192 KiB, what one multiprocessor of an A100 has


# %%
def gain(order, n, d, fast):
    """How many times less is moved in tiles."""
    found = memory_traffic(n, d_head=d, fast_memory=fast)
    return found.standard / getattr(found, order)


def crossing(order, d):
    """The smallest fast memory from which tiles move less, for a text so long that all else is small, in squares of the width."""
    low, high = 4 * d, 100 * d * d                           # loses, wins
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if gain(order, FAR, d, middle) > 1 else (middle, high)
    return high / d**2


@section.experiment
def experiment(rng):
    for n, m, d, fast in ((256, 256, 16, 1024), (300, 300, 16, 3000), (200, 333, 24, 5000), (100, 700, 8, 40_000)):
        arrays = [rng.normal(size=(rows, d)) for rows in (n, m, m)]
        formula = memory_traffic(n, m, d_head=d, fast_memory=fast)
        runs = {order: attention_with_traffic(*arrays, fast_memory=fast, order=order) for order in ORDERS}
        for order, (out, words) in runs.items():
            apart = np.abs(out - runs["standard"][0]).max()
            yield order, f"{n} x {m}, {fast}", {"counted": words, "formula": getattr(formula, order), "difference": apart}
    for fast in FAST:
        for order, words in memory_traffic(LENGTH, d_head=WIDTH, fast_memory=fast)._asdict().items():
            yield order, fast, {"by memory": words}
    for n in LENGTHS:
        for order in SQUARES:
            yield order, n, {"by length": gain(order, n, WIDTH, CHIP)}
    for order in SQUARES:
        for d in WIDTHS:
            yield order, d, {"crossing": crossing(order, d)}


# %%
def number(found, measure, curve, x):
    """The number of the one seed there is."""
    return float(np.ravel(found[measure][curve][x])[0])


def times_less(found, order):
    """Of scores in slow memory over tiles, by fast memory."""
    return {fast: number(found, "by memory", "standard", fast) / number(found, "by memory", order, fast) for fast in FAST}


def power(found, order):
    """Of the fast memory in the traffic, where tiles move less."""
    paying = [fast for fast, gained in times_less(found, order).items() if gained > 1]
    return fitted_exponent(paying, [number(found, "by memory", order, fast) for fast in paying])


@section.claim(
    "The formula is what a run moves, to the last word",
    paper="Dao et al. 2022, arXiv:2205.14135, theorem 2: by order of growth; here every word counts",
    measured=lambda found: f"equal in {sum(map(len, found['counted'].values()))} runs, whose outputs are {furthest(found):.0e} apart",
)
def counted(found):
    """Loads and stores that are counted in a run, for every order of the loops, some with blocks that are not full; outputs to 1e-12."""
    return found["counted"] == found["formula"] and furthest(found) < 1e-12


def furthest(found):
    return max(float(np.max(of)) for points in found["difference"].values() for of in points.values())


@section.claim(
    "Tiles pay where fast memory holds more than two or three squares of the width",
    paper="Dao et al. 2022, arXiv:2205.14135, section 3.2: for widths of 64 to 128 and 100 KB d^2 is many times smaller than M",
    measured=lambda found: "; ".join(
        f"{ORDERS[order]} {', '.join(f'{number(found, *place):.2f} d^2' for place in places(order))}" for order in SQUARES
    ) + f" for widths of {', '.join(map(str, WIDTHS))}",
)
def pays(found):
    """For long texts the least fast memory with which tiles move less is 3 d^2 with keys in the outer loop and 2 d^2 with queries, to within 10 %."""
    return all(abs(number(found, *place) / SQUARES[order] - 1) < 0.1 for order in SQUARES for place in places(order))


def places(order):
    return [("crossing", order, d) for d in WIDTHS]


@section.claim(
    "Twice the fast memory halves what tiles move",
    paper="Dao et al. 2022, arXiv:2205.14135, theorem 2: n^2 d^2 / M",
    measured=lambda found: ", ".join(f"{ORDERS[order]} {power(found, order):.2f}" for order in SQUARES) + " (power of M)",
)
def inverse(found):
    """The power of the fast memory in the traffic, where tiles move less: -1 to within 0.1."""
    return all(abs(power(found, order) + 1) < 0.1 for order in SQUARES)


@section.claim(
    "How much less does not depend on the length",
    paper="Dao et al. 2022, arXiv:2205.14135, theorem 2: both grow with the square",
    measured=lambda found: ", ".join(f"{number(found, 'by length', 'flash2', n):.1f} at {n:,}" for n in LENGTHS) + f" times less, {ORDERS['flash2']}",
)
def length(found):
    """From 1,024 to 65,536 positions the factor grows by less than a quarter, with a fast memory of 49,152 words."""
    return all(number(found, "by length", order, LENGTHS[-1]) < 1.25 * number(found, "by length", order, 1024) for order in SQUARES)


@section.report
def report(found):
    rows = [[fast, *(number(found, "by memory", order, fast) / 1e6 for order in ORDERS), *(times_less(found, order)[fast] for order in SQUARES)] for fast in FAST]
    section.table("traffic", ["words of fast memory", "million words moved, scores in slow memory", *list(ORDERS.values())[1:], "times less, keys outside", "queries outside"], [
        [fast, *(float(f"{cell:.3g}") for cell in cells)] for fast, *cells in rows
    ])  # fmt: skip
    for order in SQUARES:
        section.values(f"traffic.{order}", {"crossing": number(found, "crossing", order, WIDTH), "power": power(found, order),
                                            "chip": times_less(found, order)[CHIP], "least": times_less(found, order)[FAST[0]]})  # fmt: skip
    section.values("traffic", {"runs": sum(map(len, found["counted"].values())), "chip": CHIP, "least": FAST[0], "length": LENGTH, "width": WIDTH})


@section.figure("traffic", size=(7.6, 3.2), ncols=2, sharey=True)
def picture(axes, found):
    gains = {ORDERS[order]: times_less(found, order) for order in SQUARES}
    lines(axes[0], gains, xlabel="words of fast memory", ylabel="times less is moved", xscale="log", yscale="log")
    lines(axes[1], {ORDERS[order]: found["by length"][order] for order in SQUARES}, xlabel="positions", xscale="log")
    for ax, points in zip(axes, (FAST[::2], LENGTHS[::2]), strict=True):
        ticks_at(ax, list(points))
        level(ax, 1, "alike")
    axes[0].legend()


if __name__ == "__main__":
    section.main()
