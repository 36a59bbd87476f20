"""How far does a change in the first segment reach?

Dai et al. 2019, arXiv:1901.02860, section 3.2: with a memory of M positions and L layers, L M positions. Rae et al. 2019, arXiv:1911.05507, section
3: squeezed by c, L (M + c M'). Ding et al. 2020, arXiv:2012.15688, section 3.3: with the same layer's outputs for a memory, as far as the text. Wu et
al. 2020, arXiv:2010.06891: with slots, too. True by construction, and measured here: the first segment of a text changes, and what comes out of the
later ones either changes as well or stays the same to the last bit. Beside them stand readers of two levels, which have the whole text at once.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.long_context.compressive_transformer import compressive_transformer, init_compressive_transformer
from minitransformers.long_context.cross_segment import cross_segment
from minitransformers.long_context.ernie_doc import ernie_doc
from minitransformers.long_context.hat import hat, init_hat
from minitransformers.long_context.hierarchical_transformer import hierarchical_transformer, init_hierarchical_transformer
from minitransformers.long_context.memformer import init_memformer, memformer
from minitransformers.long_context.transformer_xl import init_transformer_xl, transformer_xl
from minitransformers.reporting import Section, ticks_at

section = Section(__file__, __doc__, kind="exact")
SEGMENTS, LENGTH, LAYERS, WIDTH, HEADS, RATE, SLOTS = 12, 4, 3, 16, 2, 2, 4
NOTHING, XL, SQUEEZED, SAME_LAYER, WRITTEN = "no memory", "Transformer-XL", "Compressive", "ERNIE-Doc", "Memformer"
LEVELS, FIRST_TOKENS, SUMMARIES = "words, sentences, document", "HAT, two blocks", "summaries of segments, one layer"
ROWS = {XL: LAYERS * LENGTH, SQUEEZED: LAYERS * 2 * LENGTH, SAME_LAYER: LAYERS * LENGTH, WRITTEN: SLOTS}  # a state holds, in rows
REACH = {NOTHING: 0, XL: LAYERS, SQUEEZED: LAYERS * (1 + RATE)}  # in segments: L (n + c n') / N, with n = n' = N


def ways(rng):
    """step(x, memory) -> out, memory of each, in float64."""
    sizes = {"num_layers": LAYERS, "num_heads": HEADS, "dtype": np.float64}
    stack = init_transformer_xl(rng, WIDTH, **sizes)
    squeezing = init_compressive_transformer(rng, WIDTH, rate=RATE, **sizes)
    slots = init_memformer(rng, WIDTH, num_slots=SLOTS, **sizes)
    memory_of = {"num_heads": HEADS, "memory_length": LENGTH}
    return {
        NOTHING: lambda x, memory: transformer_xl(stack, x, memory=None, **memory_of)[0],
        XL: lambda x, memory: transformer_xl(stack, x, memory=memory, **memory_of)[0],
        SQUEEZED: lambda x, memory: compressive_transformer(squeezing, x, memory=memory, compressed_length=LENGTH, rate=RATE, **memory_of)[0],
        SAME_LAYER: lambda x, memory: ernie_doc(stack, x, memory=memory, **memory_of)[0],
        WRITTEN: lambda x, memory: memformer(slots, x, memory, num_heads=HEADS)[0],
    }


def wholes(rng):
    """segments -> what comes out of each, of what reads a text at once, in float64."""
    levels = init_hierarchical_transformer(rng, WIDTH, num_heads=HEADS, max_sentences=SEGMENTS, dtype=np.float64)
    tokens = init_hat(rng, WIDTH, layout=["SC", "SC"], max_segments=SEGMENTS, num_heads=HEADS, dtype=np.float64)
    attention = init_multi_head_attention(rng, WIDTH, num_heads=HEADS, dtype=np.float64)

    def by_summaries(segments):
        out, _ = multi_head_attention(attention, segments.reshape(-1, WIDTH), num_heads=HEADS, core=partial(cross_segment, length=LENGTH))
        return out.reshape(segments.shape)

    return {
        LEVELS: lambda segments: hierarchical_transformer(levels, segments, num_heads=HEADS)[0].words,
        FIRST_TOKENS: lambda segments: hat(tokens, segments.reshape(-1, WIDTH), length=LENGTH, num_heads=HEADS)[0].reshape(segments.shape),
        SUMMARIES: by_summaries,
    }


def read(step, segments):
    """What comes out of each segment."""
    memory, outs = None, []
    for x in segments:
        out, memory = step(x, memory)
        outs.append(out)
    return np.array(outs)


@section.experiment
def experiment(rng):
    steps, segments = ways(rng), rng.normal(size=(SEGMENTS, LENGTH, WIDTH))
    other = segments.copy()
    other[0] += rng.normal(size=(LENGTH, WIDTH))
    readers = {**{name: partial(read, step) for name, step in steps.items()}, **wholes(rng)}
    for name, reader in readers.items():
        changes = np.abs(reader(other) - reader(segments)).max(axis=(1, 2))
        for distance, change in enumerate(changes):
            yield name, distance, {"change": change}


# %%
def reached(found, name):
    """The last segment that changes."""
    return max(distance for distance, change in found["change"][name].items() if np.ravel(change)[0] > 0)


@section.claim(
    "Memories of rows reach as far as their formula says, and not a position further", paper="Dai et al. 2019, section 3.2; Rae et al. 2019, section 3",
    measured=lambda found: "; ".join(f"{name}: {reached(found, name)} segments" for name in REACH),
)  # fmt: skip
def formula(found):
    """Behind the reach, in segments, the change is 0 to the last bit; within it, it is not."""
    return all(reached(found, name) == reach for name, reach in REACH.items())


@section.claim(
    "The same layer's outputs, and slots, reach to the end", paper="Ding et al. 2020, arXiv:2012.15688, section 3.3; Wu et al. 2020, arXiv:2010.06891, section 3",
    measured=lambda found: "; ".join(f"{name}: {reached(found, name)} segments of {SEGMENTS - 1}" for name in (SAME_LAYER, WRITTEN)),
)  # fmt: skip
def to_the_end(found):
    """In every segment something changes."""
    return all(reached(found, name) == SEGMENTS - 1 for name in (SAME_LAYER, WRITTEN))


@section.claim(
    "What reads a text on two levels reaches all of it at once", paper="Chalkidis et al. 2022, arXiv:2210.05529, section 3; Wu et al. 2021, arXiv:2106.01040, section 2",
    measured=lambda found: "; ".join(f"{name}: {reached(found, name)} segments of {SEGMENTS - 1}" for name in (LEVELS, FIRST_TOKENS, SUMMARIES)),
)  # fmt: skip
def at_once(found):
    """In every segment something changes."""
    return all(min(found["change"][name].values()) > 0 for name in (LEVELS, FIRST_TOKENS, SUMMARIES))


@section.report
def report(found):
    rows = []
    for name in found["change"]:
        reach = REACH.get(name)
        rows.append([name, "all at once" if name in (LEVELS, FIRST_TOKENS, SUMMARIES) else str(ROWS.get(name, 0)), "the text" if reach is None else f"{reach}", str(reached(found, name))])
    section.table("reach", ["memory", "rows kept", "segments reached, by formula", f"measured, of {SEGMENTS - 1}"], rows)


@section.figure("reach", size=(7.2, 3.2))
def picture(ax, found):
    for name, of in found["change"].items():
        points = [(distance, float(np.ravel(change)[0])) for distance, change in of.items()]
        ax.plot(*zip(*[(x, y) for x, y in points if y > 0], strict=True), "o-", label=name)
    ax.set(xlabel="segments since the change", ylabel="largest change of what comes out", yscale="log")
    ticks_at(ax, range(SEGMENTS))
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


if __name__ == "__main__":
    section.main()
