"""How much of the memory is used, if nobody knows how long a text will get?

Kwon et al. 2023, arXiv:2309.06180, section 1: of what earlier systems set aside for keys and values 20 to 38 % is used, with blocks
96 %. Here 200 requests come with lengths that are drawn, most of them short and a few long. Room is given for the longest that may
come, by powers of two, and in blocks of a pool; requests with a common beginning share its blocks.
"""

# %%
import numpy as np

from minitransformers import reserved_slots
from minitransformers.efficient.paged_attention import OutOfBlocks, PagePool
from minitransformers.reporting import Section, lines, mean_and_spread, ticks_at

section = Section(__file__, __doc__, kind="arithmetic")
REQUESTS, MEDIAN, LONGEST, BLOCK, BLOCKS = 200, 200, 2048, 16, (4, 8, 16, 32, 64, 128, 256)
POOL, PROMPT, SAMPLES, PREFIX = 16_384, 500, 8, 128
CONTIGUOUS, BUDDY, PAGED = "room for the longest", "powers of two", "blocks"
SAME, ALIKE = f"{SAMPLES} samples of one prompt of {PROMPT}", f"{REQUESTS} requests that begin with the same {PREFIX}"


# %%
def books(num_blocks, block_size=BLOCK):
    """A pool whose keys are one number wide: what is asked for are its books."""
    return PagePool(num_blocks=num_blocks, block_size=block_size, num_kv_heads=1, d_head=1)


def positions(new):
    return np.zeros((2, 1, new, 1), np.float32)


def admitted_to_a_pool(lengths):
    """How many of the requests, in their order, a pool holds in full at once."""
    pool = books(POOL // BLOCK)
    for count, n in enumerate(lengths):
        try:
            pool.append(pool.start(), *positions(n))
        except OutOfBlocks:
            return count
    return len(lengths)


def blocks_used(beginning, ends):
    """The blocks of texts that begin alike and go on for so many positions, with and without sharing."""
    pool, alone = books(20_000), sum(-(-(beginning + n) // BLOCK) for n in ends)
    first = pool.start()
    pool.append(first, *positions(beginning))
    for text, n in [(pool.fork(first), n) for n in ends]:
        pool.append(text, *positions(n))
    pool.free(first)
    return len(pool.references) - pool.free_blocks, alone


@section.experiment
def experiment(rng):
    lengths = np.clip(np.exp(rng.normal(np.log(MEDIAN), 0.7, size=REQUESTS)).astype(int), 1, LONGEST)
    for size in BLOCKS:
        reserved = reserved_slots(lengths, longest=LONGEST, block_size=size)
        for name, slots in zip((CONTIGUOUS, BUDDY, PAGED), reserved, strict=True):
            yield name, size, {"used": lengths.sum() / slots.sum()}
    reserved = reserved_slots(lengths, longest=LONGEST, block_size=BLOCK)
    for name, slots in ((CONTIGUOUS, reserved.contiguous), (BUDDY, reserved.buddy)):  # to their credit: as if pieces always fitted
        yield name, POOL, {"admitted": np.searchsorted(np.cumsum(slots), POOL, side="right")}
    yield PAGED, POOL, {"admitted": admitted_to_a_pool(lengths)}
    ends = rng.integers(50, 200, size=SAMPLES)
    for name, beginning, own in ((SAME, PROMPT, ends), (ALIKE, PREFIX, lengths)):
        shared, alone = blocks_used(beginning, own)
        # The full blocks of the beginning once; all else, the copy of its half-filled block too, by each.
        formula = beginning // BLOCK + sum(-(-(beginning + n) // BLOCK) - beginning // BLOCK for n in own)
        yield name, beginning, {"blocks": shared, "alone": alone, "formula": formula}


# %%
@section.claim(
    "Blocks of 16 leave little unused, room for the longest leaves most",
    paper="Kwon et al. 2023, arXiv:2309.06180, section 1 and figure 2: 20.4 to 38.2 % of what is reserved is used, with blocks 96.3 %",
    measured=lambda found: ", ".join(f"{name} {mean_and_spread(100 * of[BLOCK], '.1f')} %" for name, of in found["used"].items()),
)
def used(found):
    """Of the slots that are set aside more than 95 % hold a position with blocks of 16, 60 to 85 % with powers of two, less than 20 % else."""
    filled = {name: of[BLOCK] for name, of in found["used"].items()}
    return filled[PAGED] > 0.95 and 0.6 < filled[BUDDY] < 0.85 and filled[CONTIGUOUS] < 0.2


@section.claim(
    "A pool holds several times as many texts in blocks",
    paper="Kwon et al. 2023, arXiv:2309.06180, section 6.2: 4.3 times as many requests at once as with room for the longest",
    measured=lambda found: ", ".join(f"{name} {mean_and_spread(of[POOL], '.0f')}" for name, of in found["admitted"].items()),
)
def admitted(found):
    """In 16,384 slots at least four times as many as with room for the longest, and at least 1.2 times as many as with powers of two."""
    count = {name: of[POOL] for name, of in found["admitted"].items()}
    return count[PAGED] >= 4 * count[CONTIGUOUS] and count[PAGED] >= 1.2 * count[BUDDY]


@section.claim(
    "A common beginning is stored once",
    paper="Kwon et al. 2023, arXiv:2309.06180, section 4.4: samples of one prompt share its blocks, and copy the last one on writing",
    measured=lambda found: "; ".join(f"{name}: {mean_and_spread(100 * share(found, name), '.0f')} % of the blocks" for name in found["blocks"]),
)
def sharing(found):
    """The blocks are those of the formula to the last one: full blocks of the beginning once, all else for each text."""
    return all(found["blocks"][name] == found["formula"][name] for name in found["blocks"])


def share(found, name):
    """The blocks that are used, of those that the texts would take apart."""
    (shared,), (alone,) = found["blocks"][name].values(), found["alone"][name].values()
    return shared / alone


@section.report
def report(found):
    used, count = found["used"], found["admitted"]
    rows = [[name, mean_and_spread(100 * used[name][BLOCK], ".1f"), mean_and_spread(count[name][POOL], ".0f")] for name in (CONTIGUOUS, BUDDY)]
    rows += [[f"{PAGED} of {size}", mean_and_spread(100 * used[PAGED][size], ".1f"), mean_and_spread(count[PAGED][POOL], ".0f") if size == BLOCK else None]
             for size in BLOCKS]  # fmt: skip
    section.table("paging", ["room is given", "% of it used", f"texts at once in {POOL:,} slots"], rows)
    section.table("beginnings", ["texts", "blocks, shared", "each alone"], [
        [name, *(mean_and_spread(next(iter(found[what][name].values())), ".0f") for what in ("blocks", "alone"))] for name in (SAME, ALIKE)
    ])  # fmt: skip
    for name, short in ((CONTIGUOUS, "contiguous"), (BUDDY, "buddy"), (PAGED, "paged")):
        section.value(f"paging.used.{short}", 100 * found["used"][name][BLOCK].mean())
        section.value(f"paging.admitted.{short}", found["admitted"][name][POOL].mean())
    for name, short in ((SAME, "samples"), (ALIKE, "requests")):
        section.value(f"paging.share.{short}", 100 * share(found, name).mean())
    section.values("paging", {"requests": REQUESTS, "median": MEDIAN, "longest": LONGEST, "pool": POOL, "prompt": PROMPT, "samples": SAMPLES, "prefix": PREFIX})


@section.figure("paging", size=(5.5, 3))
def picture(ax, found):
    curves = {name: {size: 100 * share for size, share in of.items()} for name, of in found["used"].items()}
    lines(ax, curves, xlabel="positions in a block", ylabel="% of the slots used", xscale="log", ylim=(0, 102))
    ticks_at(ax, list(BLOCKS))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
