"""What does it cost that keys lie in a ring, or in pages?

Jiang et al. 2023, arXiv:2310.06825, section 2: with a window a ring of as many slots is enough. Kwon et al. 2023, arXiv:2309.06180,
section 7.1: attention through a table takes 20 to 26 % longer, in a kernel that reads blocks where they lie. Here a ring that
must not be written over is copied for each token, and keys are gathered from their blocks before they are read.
"""

# %%
import numpy as np

from minitransformers import causal_attention, key_value_cache, softmax_attention
from minitransformers.efficient.paged_attention import PagePool, paged_attention
from minitransformers.efficient.rolling_cache import rolling_attention, rolling_cache
from minitransformers.reporting import Section, processor_seconds

section = Section(__file__, __doc__, kind="timed")
HEADS, WIDTH, WINDOW, BLOCK, TEXTS = 8, 64, 1024, 16, 16
ROOM, RING, APART, PAGED = "a room, in order", "a ring", "each text in one piece", "in pages"


# %%
def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def relative(forms, rounds):
    """The processor time of each form over that of the first, in all rounds; a round of each in turn, so that they meet the same neighbours."""
    times = dict.fromkeys(forms, 0.0)
    for _ in range(rounds):
        for name, form in forms.items():
            with processor_seconds() as spent:
                form()
            times[name] += spent()
    return {name: of / times[next(iter(times))] for name, of in times.items()}


def of_a_window(rng):
    """A token over a full window, which continues a ring and a room that keeps order."""
    query, key, value = normal(rng, 3, 1, HEADS, 1, WIDTH)
    start = normal(rng, 2, 1, HEADS, WINDOW, WIDTH)
    states = {RING: rolling_cache(None, *start, window=WINDOW), ROOM: key_value_cache(None, *start, window=WINDOW)}

    def ring():
        _, states[RING] = rolling_attention(None, query, key, value, states[RING], window=WINDOW)

    def room():
        states[ROOM] = key_value_cache(states[ROOM], key, value)
        causal_attention(None, query, states[ROOM].keys, states[ROOM].values)

    times = relative({ROOM: room, RING: ring}, 20 if section.quick else 2 * WINDOW)
    held = states[ROOM].room
    for name, size in ((ROOM, held.keys.nbytes + held.values.nbytes), (RING, states[RING].bytes)):
        yield name, "a token", {"time": times[name], "MiB": size / 2**20}


def of_many_texts(rng):
    """A token of each of some texts that grew side by side, so that their blocks lie scattered."""
    lengths = np.clip(np.exp(rng.normal(np.log(200), 0.7, size=TEXTS)).astype(int), 1, 2048)
    pool = PagePool(num_blocks=int((-(-lengths // BLOCK)).sum()), block_size=BLOCK, num_kv_heads=HEADS, d_head=WIDTH)
    whole, texts = [normal(rng, 2, HEADS, n, WIDTH) for n in lengths], [pool.start() for _ in lengths]
    for t in range(0, lengths.max(), BLOCK):
        for text, kept, n in zip(texts, whole, lengths, strict=True):
            if t < n:
                pool.append(text, *kept[:, :, t : t + BLOCK])
    query, (tables, found) = normal(rng, TEXTS, HEADS, 1, WIDTH), pool.tables(texts)
    forms = {
        APART: lambda: np.array([softmax_attention(None, q, *kept)[0] for q, kept in zip(query, whole, strict=True)]),
        PAGED: lambda: paged_attention(query, pool_keys=pool.keys, pool_values=pool.values, tables=tables, lengths=found),
    }
    apart = np.abs(forms[APART]() - forms[PAGED]()).max()
    for form, ratio in relative(forms, 5 if section.quick else 200).items():
        yield form, "a token", {"time": ratio, "difference": apart}


@section.experiment
def experiment(rng):
    yield from of_a_window(rng)
    yield from of_many_texts(rng)


# %%
def over(found, measure, one, other):
    """The quotient of two numbers of the one seed there is."""
    return float(np.ravel(found[measure][one]["a token"] / found[measure][other]["a token"])[0])


@section.claim(
    "Where appending is pure a ring is smaller than a room, and slower",
    paper="no paper: a ring that is written over needs no copy, and is no pure function",
    measured=lambda found: f"{over(found, 'MiB', RING, ROOM):.2f} of its memory, {over(found, 'time', RING, ROOM):.1f} times its time",
)
def pure(found):
    """At most 0.55 of the memory, and at least 1.5 times the time."""
    return over(found, "MiB", RING, ROOM) < 0.55 and over(found, "time", RING, ROOM) > 1.5


@section.claim(
    "Gathering keys from blocks of 16 costs more than reading them",
    paper="Kwon et al. 2023, arXiv:2309.06180, section 7.1: through a table attention takes 20 to 26 % longer, in a kernel that gathers nothing",
    measured=lambda found: f"{over(found, 'time', PAGED, APART):.1f} times the time of contiguous attention",
)
def gathering(found):
    """All keys and values are copied once and read once: between 1.2 and 5 times the time of contiguous attention."""
    return 1.2 < over(found, "time", PAGED, APART) < 5


@section.report
def report(found):
    rows = [[name, float(f"{times['a token'][0]:.2f}")] for name, times in found["time"].items()]
    section.table("places", ["keys lie in", "time of a token"], rows)
    section.values("places", {"ring": over(found, "time", RING, ROOM), "memory": over(found, "MiB", RING, ROOM), "paged": over(found, "time", PAGED, APART),
                              "window": WINDOW, "texts": TEXTS, "difference": found["difference"][PAGED]["a token"][0]})  # fmt: skip


if __name__ == "__main__":
    section.main()
