"""A cue is shown once: how many segments later is it still known?

Dai et al. 2019, arXiv:1901.02860: a memory of the last segments' hidden states reaches as far as it is long, times the layers. Rae et al. 2019,
arXiv:1911.05507: squeeze what leaves it, and the same rows reach further. Ding et al. 2020 (ERNIE-Doc), arXiv:2012.15688: keep what a layer has put
out in the place of what it read, and there is no end. Wu et al. 2020 (Memformer), arXiv:2010.06891: a few slots that are written anew carry on
without one. A text has six segments of eight tokens; a cue stands in the first, and at the end of every later one it is asked for. All have one
layer of 32 features, and 16 rows of memory where they have rows.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.basics.linear import init_linear, linear
from minitransformers.foundation import trees
from minitransformers.long_context.compression_loss import compression_loss
from minitransformers.long_context.compressive_transformer import compressive_transformer, init_compressive_transformer
from minitransformers.long_context.ernie_doc import ernie_doc
from minitransformers.long_context.memformer import init_memformer, memformer
from minitransformers.long_context.transformer_xl import init_transformer_xl, transformer_xl
from minitransformers.long_context.transformer_xl_layer import transformer_xl_pre_norm_layer
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.reporting import Section, lines, mean_and_spread, ticks_at, tried
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Task
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
SEGMENTS, LENGTH, CUES, NOISE, WIDTH, HEADS, ROWS, SLOTS, RATE, STEPS, BATCH, ASKED = 6, 8, 8, 8, 32, 2, 16, 4, 4, 300, 64, 1000
ASK = CUES + NOISE
NOTHING, XL, SQUEEZED, SAME_LAYER, WRITTEN = "no memory", "Transformer-XL", "Compressive", "ERNIE-Doc", "Memformer"
LAST = "{}, asked at the end alone"
KEYS = {"nothing": NOTHING, "xl": XL, "squeezed": SQUEEZED, "same": SAME_LAYER, "written": WRITTEN}


def draw(rng, *, texts=BATCH, last=False):
    """Ids (texts, segments, tokens), and what is to be said at the end of each segment."""
    ids = rng.integers(CUES, CUES + NOISE, size=(texts, SEGMENTS, LENGTH))
    cue = rng.integers(CUES, size=texts)
    ids[np.arange(texts), 0, rng.integers(LENGTH, size=texts)] = cue
    asks = np.arange(SEGMENTS) >= (SEGMENTS - 1 if last else 1)
    ids[:, asks, -1] = ASK
    return ids, np.where(asks, cue[:, None], IGNORED)


# %% Ways to remember: step(stack, x, memory) -> (out, memory), backward; the first three stop gradients at their memory
settings = {"num_heads": HEADS, "layer": transformer_xl_pre_norm_layer}
STEP = {
    NOTHING: lambda stack, x, memory: transformer_xl(stack, x, memory=None, memory_length=ROWS, **settings),
    XL: lambda stack, x, memory: transformer_xl(stack, x, memory=memory, memory_length=ROWS, **settings),
    SQUEEZED: lambda stack, x, memory: compressive_transformer(
        stack, x, memory=memory, memory_length=LENGTH, compressed_length=ROWS - LENGTH, rate=RATE, **settings
    ),
    SAME_LAYER: lambda stack, x, memory: ernie_doc(stack, x, memory=memory, memory_length=ROWS, **settings),
    WRITTEN: partial(memformer, num_heads=HEADS),
}


def init_stack(name, rng):
    sizes = {"num_layers": 1, "num_heads": HEADS, "d_hidden": 2 * WIDTH}
    if name == SQUEEZED:
        return init_compressive_transformer(rng, WIDTH, rate=RATE, **sizes)
    return init_memformer(rng, WIDTH, num_slots=SLOTS, **sizes) if name == WRITTEN else init_transformer_xl(rng, WIDTH, **sizes)


def squeezing(stack, before, after):
    """How far attention to what was squeezed is from attention to what it was, and the gradient of that: of the compression alone."""
    value, backward = compression_loss(stack.compress, layers=stack.layers, before=before, after=after, positions=LENGTH, num_heads=HEADS, rate=RATE, norm=layer_norm)
    return value, trees.zeros_like(stack)._replace(compress=backward(np.float32(1.0)))


# %% A text, segment by segment; what stands at the end of each is asked
def reader(params, ids, name):
    """Logits (texts, segments, ids), what squeezing adds to the loss, and backward."""
    words, stack, norm, head = params
    x, words_backward = embedding(words, ids=ids)
    memory, outs, backwards, added, dadded = None, [], [], 0.0, []
    for t in range(SEGMENTS):
        before = memory
        (out, memory), back = STEP[name](stack, x[:, t], memory)
        outs.append(out[:, -1])
        backwards.append(back)
        if name == SQUEEZED:
            value, dstack = squeezing(stack, before, memory)
            added, dadded = added + value, [*dadded, dstack]
    normed, norm_backward = layer_norm(norm, np.stack(outs, axis=1))
    logits, head_backward = linear(head, normed)

    def backward(dlogits, dvalue):
        dhead, dnormed = head_backward(dlogits)
        dnorm, dends = norm_backward(dnormed)
        dx, dmemory, dstack = np.zeros_like(x), None, trees.zeros_like(stack)
        for t in reversed(range(SEGMENTS)):
            dout = np.zeros_like(x[:, t])
            dout[:, -1] = dends[:, t]
            own, dx[:, t], *rest = backwards[t]((dout, dmemory))
            dmemory = rest[0] if rest else None              # of slots; a stopped memory gets none
            dstack = trees.map(np.add, dstack, own)
        for own in dadded:
            dstack = trees.map(lambda total, part: total + dvalue * part, dstack, own)
        return words_backward(dx), dstack, dnorm, dhead

    return logits, added, backward


class Remembering(Task):
    """Saying the cue wherever it is asked for."""

    def __init__(self, name, last):
        self.name, self.last = name, last

    def batch(self, rng):
        return draw(rng, last=self.last)

    def loss(self, params, batch, *, rng):
        ids, targets = batch
        logits, added, backward = reader(params, ids, self.name)
        total, loss_backward = cross_entropy(logits, targets=targets, reduction="sum")
        count = int((targets != IGNORED).sum())
        return (total + count * added, count), lambda dloss: backward(loss_backward(dloss[0]), dloss[0] * count)


RUNS = {**{name: (name, False) for name in STEP}, LAST.format(SAME_LAYER): (SAME_LAYER, True), LAST.format(WRITTEN): (WRITTEN, True)}


def learned(run, rng, *, rate):
    name, last = RUNS[run]
    params = init_embedding(rng, ASK + 1, WIDTH, std=0.5), init_stack(name, rng), init_layer_norm(rng, WIDTH), init_linear(rng, WIDTH, ASK + 1)
    return fit(params, Remembering(name, last), steps=3 if section.quick else STEPS, peak=rate, rng=rng, warmup=0.1, floor=0.05)


def judged(params, run, rng, texts):
    """The share of right answers at each distance, and the mean loss in nats."""
    name, last = RUNS[run]
    ids, targets = draw(rng, texts=texts, last=last)
    logits, _, _ = reader(params, ids, name)
    asks = targets[0] != IGNORED
    right = (logits[..., :CUES].argmax(axis=-1) == targets)[:, asks].mean(axis=0)
    return dict(zip(np.flatnonzero(asks).tolist(), right.tolist(), strict=True)), float(cross_entropy(logits, targets=targets)[0])


RATES = {NOTHING: (1e-2,), SAME_LAYER: (1e-3, 3e-3, 1e-2), LAST.format(SAME_LAYER): (1e-3, 3e-3, 1e-2)}
RATES = {run: RATES.get(run, (3e-3, 1e-2, 3e-2)) for run in RUNS}


@section.tuning
def tuning(rng):
    def of_two_starts(run, rng, rate):
        """Some begin to remember from one start and not from another: what is chosen has to do so from both."""
        return np.mean([judged(learned(run, rng, rate=rate), run, rng, 300)[1] for _ in range(1 if section.quick else 2)])

    yield from tried(of_two_starts, RUNS, dict.fromkeys(RUNS, (1e-2,)) if section.quick else RATES, rng)


@section.experiment
def experiment(rng):
    hold_blas()
    for run in RUNS:
        right, _ = judged(learned(run, rng, rate=section.rates[run]), run, rng, 100 if section.quick else ASKED)
        for distance, share in right.items():
            yield run, distance, {"right": share}


# %%
def told(found, *runs):
    return "; ".join(f"{run}: {', '.join(f'{np.mean(y):.2f}' for y in found['right'][run].values())}" for run in runs)


@section.claim(
    "Transformer-XL forgets at the end of its memory", paper="Dai et al. 2019, arXiv:1901.02860, section 3.2: the reach is layers times length",
    measured=lambda found: f"right 1 to 5 segments later; {told(found, XL, NOTHING)}; a guess {1 / CUES}",
)  # fmt: skip
def forgets(found):
    """Right in at least 0.98 of cases one and two segments later, and in at most 0.18 from three on."""
    right = found["right"][XL]
    return min(right[1], right[2]) >= 0.98 and max(right[3], right[4], right[5]) <= 0.18


@section.claim(
    "As many rows, half of them squeezed, remember beyond it", paper="Rae et al. 2019, arXiv:1911.05507, section 3",
    measured=lambda found: f"right 1 to 5 segments later; {told(found, SQUEEZED)}",
)  # fmt: skip
def squeezed_remember(found):
    """Right in at least 0.95 of cases at every distance."""
    return min(found["right"][SQUEEZED].values()) >= 0.95


@section.claim(
    "Do as many rows of the same layer remember beyond it?", paper="Ding et al. 2020, arXiv:2012.15688, section 3.3",
    measured=lambda found: f"right 1 to 5 segments later; {told(found, SAME_LAYER)}",
)  # fmt: skip
def same_layer_remembers(found):
    """Right in at least 0.95 of cases at every distance."""
    return min(found["right"][SAME_LAYER].values()) >= 0.95


@section.claim(
    "Four slots that are written remember as well", paper="Wu et al. 2020, arXiv:2010.06891, section 3: memory of constant size",
    measured=lambda found: f"right 1 to 5 segments later; {told(found, WRITTEN)}",
)  # fmt: skip
def slots_remember(found):
    """Right in at least 0.95 of cases at every distance."""
    return min(found["right"][WRITTEN].values()) >= 0.95


@section.claim(
    "Does a stopped memory keep what is asked for at the end alone?", paper="no paper: no gradient teaches the segments between to hand it on",
    measured=lambda found: f"right five segments later; {told(found, LAST.format(SAME_LAYER))}; a guess {1 / CUES}",
)  # fmt: skip
def stopped_keeps(found):
    """Right in at least 0.5 of cases."""
    return found["right"][LAST.format(SAME_LAYER)][5] >= 0.5


@section.claim(
    "Slots with a gradient through them keep what is asked for at the end alone", paper="Wu et al. 2020, arXiv:2010.06891, section 3.5: back-propagation through the memory",
    measured=lambda found: f"right five segments later; {told(found, LAST.format(WRITTEN))}; a guess {1 / CUES}",
)  # fmt: skip
def slots_keep(found):
    """Right in at least 0.95 of cases."""
    return found["right"][LAST.format(WRITTEN)][5] >= 0.95


@section.report
def report(found):
    distances = range(1, SEGMENTS)
    rows = [["guessing", *[f"{1 / CUES:.3f}"] * len(distances), ""]]
    rows += [[run, *(mean_and_spread(of[d], ".3f") if d in of else "" for d in distances), f"{section.rates[run]:g}"] for run, of in found["right"].items()]
    section.table("recall", ["share of cues known, segments later", *map(str, distances), "learning rate"], rows)
    for key, name in KEYS.items():
        section.values(f"recall.{key}", {f"d{d}": found["right"][name][d].mean() for d in distances})
    section.values("recall.last", {"same": found["right"][LAST.format(SAME_LAYER)][5].mean(), "written": found["right"][LAST.format(WRITTEN)][5].mean()})


@section.figure("recall", size=(6, 3.2))
def picture(ax, found):
    lines(ax, {name: found["right"][name] for name in STEP}, xlabel="segments since the cue", ylabel="share of cues known", ylim=(0, 1.05))
    ticks_at(ax, range(1, SEGMENTS))
    ax.legend()


if __name__ == "__main__":
    section.main()
