"""Hybrids: a recurrence for the long past, attention for what must be exact.

What a state of fixed size forgets, what a window cannot reach, and what a little attention between recurrences, shared
or not, gives back.
"""

# %%
import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minitransformers.attention.core import causal_attention, softmax_attention
from minitransformers.attention.grouped_query_attention import GroupedQueryAttention
from minitransformers.attention.multi_head_attention import MultiHeadAttention, multi_head_attention
from minitransformers.attention.sliding_window_attention import sliding_window_attention
from minitransformers.basics.causal_convolution import CausalConvolution, causal_convolution, init_causal_convolution
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import trees
from minitransformers.hybrids.bmojo import Bmojo, init_bmojo
from minitransformers.hybrids.bmojo_blocks import bmojo_blocks, bmojo_step
from minitransformers.hybrids.eidetic_memory import innovation
from minitransformers.hybrids.samba import init_samba, samba
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.transformer_block import TransformerBlock, transformer_block
from minitransformers.norms.rms_norm import RmsNorm, init_rms_norm, rms_norm
from minitransformers.reporting.chapter import Chapter
from minitransformers.state_space.mamba import Mamba, mamba
from minitransformers.training.fit import fit
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.synthetic import associative_recall
from minitransformers.training.task import Labelled, accuracy, on_ids

chapter = Chapter("hybrids", __doc__)
keep_freed_memory()


# %% Reach: how far back a stack of windows sees, and with one recurrence in it
def reach_section():
    rng, window, length = chapter.rng(), 8, 128
    layers = init_samba(rng, 16, num_layers=6, num_heads=2, dtype=np.float64)
    recurrences, windows = layers[0::2], layers[1::2]
    stacks = {
        "3 windows": windows,
        "Mamba below 3 windows": [recurrences[0], *windows],
        "Mamba above 3 windows": [*windows, recurrences[0]],
        "Samba, 6 layers": layers,
        "3 Mamba": recurrences,
    }
    x = rng.normal(size=(length, 16))
    changed = x.copy()
    changed[0] += 1.0
    rows, changes = [], {}
    for name, stack in stacks.items():
        out, after = (samba(stack, a, num_heads=2, window=window)[0] for a in (x, changed))
        change = np.linalg.norm(after - out, axis=-1)
        changes[name] = change
        rows.append([name, int(np.flatnonzero(change)[-1]), *(float(change[k]) for k in (1, 3 * (window - 1), 3 * (window - 1) + 1, length - 1))])
    edge = 3 * (window - 1)
    chapter.table("reach", ["stack", "changes how far", "change at 1", f"at {edge}", f"at {edge + 1}", f"at {length - 1}"], rows)
    chapter.value("reach.window", window)
    chapter.value("reach.edge", edge)
    with chapter.figure("reach") as (_, ax):
        for name, change in changes.items():
            shown = np.where(change > 0, change, np.nan)
            ax.semilogy(np.arange(1, length), shown[1:], label=name)
        ax.axvline(edge, color="#808080", linewidth=0.8, linestyle=":")
        ax.set(xlabel="positions after the change", ylabel="change of the output")
        ax.legend(loc="upper right")
    chapter.claim(
        "A change in the input passes through windows as far as they reach and no further; one recurrence carries it to the end",
        paper="Ren et al. 2024, arXiv:2406.07522, section 1: a window's reach is its size times the depth, a state's has no bound",
        expect=f"three windows of {window}: exactly nothing past {edge} positions; with Mamba anywhere in the stack: something at all of {length - 1}",
        measured=f"windows alone: {rows[0][1]} positions, change 0 after; with one Mamba: {rows[1][1]} and {rows[2][1]}, "
        f"and {changes['Samba, 6 layers'][-1]:.0e} in all of Samba",
        holds=rows[0][1] == edge and all(row[1] == length - 1 for row in rows[1:]),
    )


reach_section()


# %% Associative recall: the number of pairs against mixer
class Reader(NamedTuple):
    """Words, a short convolution that tells every word of the two before it, layers, and a head.

    A value then knows its key. Otherwise each model would first have to discover the word before, which takes attention
    thousands of steps and Mamba none: it has such a convolution. What is compared here is recall.
    """

    words: Embedding
    convolution: CausalConvolution
    layers: Any
    norm: RmsNorm
    head: Linear


def init_reader(rng, config):
    settings = {"d_model": config.d_model, "num_heads": config.num_heads, "num_layers": config.num_layers}

    def fresh(role):
        return config.parts[role].init(rng, **settings)

    if config.stack is not None:
        layers = config.mixers[0].init(rng, **settings)
    else:
        layers = [TransformerBlock(fresh("norm"), mixer.init(rng, **settings), fresh("norm"), fresh("channel")) for mixer in config.mixers]
    return Reader(
        init_embedding(rng, config.vocabulary_size, config.d_model, std=1.0), init_causal_convolution(rng, config.d_model, width=3), layers,
        init_rms_norm(rng, config.d_model), init_linear(rng, config.d_model, config.vocabulary_size),
    )  # fmt: skip


def reader(params, *, ids, config):
    bound = config.bound
    words, words_backward = embedding(params.words, ids=ids)
    hidden, convolution_backward = causal_convolution(params.convolution, words)
    backwards, stack_backward = [], None
    if config.stack is not None:
        hidden, stack_backward = bound.mixers[0].call(params.layers, hidden)
    else:
        for block, mixer in zip(params.layers, bound.mixers, strict=True):
            hidden, block_backward = transformer_block(block, hidden, mixer=mixer.call, channel=bound.channel, norm=bound.norm)
            backwards.append(block_backward)
    normed, norm_backward = rms_norm(params.norm, hidden)
    logits, head_backward = linear(params.head, normed)

    def backward(dlogits):
        dhead, dnormed = head_backward(dlogits)
        dnorm, dhidden = norm_backward(dnormed)
        if stack_backward is not None:
            dlayers, dhidden, _ = stack_backward(dhidden)
        else:
            dlayers = []
            for block_backward in reversed(backwards):
                dblock, dhidden, _ = block_backward(dhidden)
                dlayers.insert(0, dblock)
        dconvolution, dwords, _ = convolution_backward(dhidden)
        return Reader(words_backward(dwords), dconvolution, dlayers, dnorm, dhead)

    return logits, backward


def recall_section():
    length, vocabulary, window, d_state = 32, 40, 8, 4
    pairs, steps = (1, 2, 4, 6, 8), 20 if chapter.quick else 700
    shared = {"vocabulary_size": vocabulary, "context": length, "d_model": 32, "num_layers": 2, "num_heads": 2, "norm": "rms_norm"}

    def blocks(position, hidden, **mixer):
        name = mixer.pop("mixer", "multi_head_attention")
        options = {"mixer": mixer, "channel": {"d_hidden": hidden}}
        return LanguageModelConfig(**shared, mixer=name, channel="gated_feed_forward", position=position, options=options)

    def stack(name, **options):
        return LanguageModelConfig(**shared, stack=name, position="rope", options={"stack": {"d_state": d_state, **options}})

    models = {                                               # hidden widths with which all have as many parameters
        "full attention": blocks("rope", 133),
        f"window of {window}": blocks("rope", 134, mixer="sliding_window_attention", window=window),
        "Mamba": blocks("none", 97, mixer="mamba", d_state=d_state),
        f"Samba, window of {window}": stack("samba", window=window, d_hidden=116),
        "Zamba": stack("zamba", every=1, d_hidden=24),
    }
    keys = dict(zip(models, ("attention", "window", "mamba", "samba", "zamba"), strict=True))
    rows, found = [], {}
    for name, config in models.items():
        rng = chapter.rng()
        model = partial(reader, config=config)

        def draw(rng):
            count = int(rng.integers(1, max(pairs) + 1))
            return associative_recall(rng, batch_size=16, length=length, num_pairs=count, vocabulary_size=vocabulary, random_filler=False)

        params = init_reader(rng, config)
        progress = partial(chapter.progress, text=name)
        params = fit(params, Labelled(on_ids(model), draw), steps=steps, peak=5e-3, rng=rng, progress=progress)
        right = []
        for count in pairs:
            ids, targets = associative_recall(
                np.random.default_rng(chapter.seed + 1), batch_size=256, length=length, num_pairs=count, vocabulary_size=vocabulary, random_filler=False
            )
            right.append(accuracy(model(params, ids=ids)[0], targets))
        found[name] = right
        rows.append([name, trees.count_parameters(params), *(100 * part for part in right)])
        for count, part in zip(pairs, right, strict=True):
            chapter.value(f"recall.{keys[name]}.{count}", 100 * part)
    chapter.table("recall", ["mixer", "parameters", *(f"{count} pairs, %" for count in pairs)], rows)
    sizes = [row[1] for row in rows]
    chapter.value("recall.steps", steps)
    chapter.value("recall.length", length)
    chapter.value("recall.spread", 100 * (max(sizes) / min(sizes) - 1))
    with chapter.figure("recall") as (_, ax):
        for name, right in found.items():
            ax.plot(pairs, right, "-." if name == "Zamba" else "-", marker="o", label=name)  # it lies on full attention's line
        ax.plot(pairs, [1 / count for count in pairs], "--", color="#808080", label="one of the values, by chance")
        ax.set(xlabel="pairs to remember", ylabel="recalled", ylim=(0, 1.05), xticks=pairs)
        ax.legend(loc="center right", bbox_to_anchor=(1, 0.68))
    most = {name: right[-1] for name, right in found.items()}
    mamba, samba_right = most["Mamba"], most[f"Samba, window of {window}"]
    chapter.claim(
        "A little attention gives a recurrence its recall back",
        paper="Glorioso et al. 2024, arXiv:2405.16712, section 2: one shared attention block is nearly enough; Arora et al. 2023, arXiv:2312.04927: "
        "attention recalls at any width, a state of fixed size does not",
        expect=f"of {pairs[-1]} pairs full attention and Zamba recall over 90 %, Mamba and a window of {window} under half, at equal parameters and steps",
        measured=", ".join(f"{name} {100 * right:.0f} %" for name, right in most.items()) + f"; parameters within {100 * (max(sizes) / min(sizes) - 1):.1f} %",
        holds=min(most["full attention"], most["Zamba"]) > 0.9 and max(mamba, most[f"window of {window}"]) < 0.5,
        full_only=True,
    )
    chapter.claim(
        "A window beside a recurrence recalls more than either alone",
        paper="Ren et al. 2024, arXiv:2406.07522, section 3.3: Samba recalls passkeys far beyond its window",
        expect=f"of {pairs[-1]} pairs Samba recalls more than Mamba and than the window, by a tenth at least",
        measured=f"Samba {100 * samba_right:.0f} %, Mamba {100 * mamba:.0f} %, the window {100 * most[f'window of {window}']:.0f} %",
        holds=samba_right > max(mamba, most[f"window of {window}"]) + 0.1,
        toy_scale=f"what lies beyond the window must come through a state of {d_state} numbers a channel, after {steps} steps of training",
        full_only=True,
    )


recall_section()


# %% B'MOJO: recall with fading memory, with a window, and with an eidetic memory
PERIOD = 8  # of the background, in tokens


def made_by_hand(d):
    """A layer that looks up by address, for tokens of an address, a value and a question, of d numbers each.

    Nothing is learned. The recurrence passes on the token of PERIOD - 1 positions before, which foretells a periodic text, and
    adds a running mean of the last 50 tokens or so.
    """
    width = 3 * d
    eye, twice, none = np.eye(width), 2 * width, np.zeros((d, d))
    signs = np.concatenate([eye, -eye], axis=1)              # silu(v) - silu(-v) = v: two channels pass a number unchanged
    inlet = np.concatenate([signs, np.zeros((width, twice))], axis=1)
    gates = np.concatenate([np.zeros(twice), np.full(twice, 1.2784645)])  # silu of it is 1
    delay = np.eye(1, PERIOD) * np.ones((twice, 1))          # tap 0 is the one furthest back
    ssm = Mamba(
        Linear(inlet, gates), CausalConvolution(delay, None), Linear(np.zeros((twice, 3)), np.array([0.0, 1.0, 1.0])),  # B = C = 1
        Linear(np.zeros((1, twice)), np.full(twice, np.log(np.expm1(0.02)))), np.zeros((twice, 1)), np.ones(twice), Linear(signs.T, None),
    )  # fmt: skip
    ask, address, value = (np.concatenate([part * np.eye(d) if k == i else none for k in range(3)]) for i, part in ((2, 40), (0, 1), (1, 1)))
    return trees.cast(Bmojo(ssm, *(Linear(w, None) for w in (ask, address, value, value.T))), np.float32)


def texts_with_pairs(rng, *, pairs, trials, length, window, d):
    """Periodic texts with pairs of an address and a value in them, and questions at the end, out of every window's reach."""

    def unit(*shape):
        rows = rng.normal(size=shape)
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    def token(address, value):
        return np.concatenate([address, value, np.zeros_like(address)], axis=-1)

    x = np.tile(token(unit(trials, PERIOD, d), unit(trials, PERIOD, d)), (1, length // PERIOD, 1))
    address, value = unit(trials, pairs, d), unit(trials, pairs, d)
    places = np.stack([np.sort(rng.choice(np.arange(4 * PERIOD, length - 3 * window), pairs, replace=False)) for _ in range(trials)])
    trial = np.arange(trials)[:, None]
    x[trial, places] = token(address, value)
    asked = rng.permuted(np.tile(np.arange(pairs), (trials, 1)), axis=1)
    x[:, -pairs:] = 0
    x[:, -pairs:, 2 * d :] = address[trial, asked]
    return x.astype(np.float32), value.astype(np.float32), asked, places


def eidetic_section():
    d, length, window, memory, trials = 16, 512, 32, 16, 3 if chapter.quick else 16
    layer = made_by_hand(d)
    attention = {"num_heads": 1, "core": partial(softmax_attention, scale=1.0)}
    windowed, full = GroupedQueryAttention(*layer[1:]), MultiHeadAttention(*layer[1:])
    forms = {
        "fading": lambda x: bmojo_blocks(layer, x, window=1, memory=0, **attention),
        "window": lambda x: sliding_window_attention(windowed, x, window=window, **attention),
        "both (F)": lambda x: bmojo_blocks(layer, x, window=window, memory=0, **attention),
        f"and {memory} kept": lambda x: bmojo_blocks(layer, x, window=window, memory=memory, **attention),
        f"and {2 * memory} kept": lambda x: bmojo_blocks(layer, x, window=window, memory=2 * memory, **attention),
        "full": lambda x: multi_head_attention(full, x, num_heads=1, core=partial(causal_attention, scale=1.0)),
    }
    counts = (8, 16, 32) if chapter.quick else (4, 8, 12, 16, 24, 32)
    found, held, rows, shown = {name: [] for name in forms}, {}, [], None
    for pairs in counts:
        x, value, asked, places = texts_with_pairs(chapter.rng(), pairs=pairs, trials=trials, length=length, window=window, d=d)
        for name, form in forms.items():
            read = form(x)[0][:, -pairs:, d : 2 * d]
            found[name].append(float(((read @ value.swapaxes(-1, -2)).argmax(-1) == asked).mean()))
        kept = bmojo_step(layer, x, None, window=window, memory=memory, **attention)[1].eidetic.position
        held[pairs] = [float(np.mean([np.isin(own, slots).sum() for own, slots in zip(spots, kept, strict=True)])) for spots in (places, places + PERIOD)]
        rows.append([pairs, *(found[name][-1] for name in forms)])
        if pairs == 8:
            surprise, spots = innovation(x, mamba(layer.ssm, x)[0])[0][0], places[0]
    chapter.table("eidetic", ["pairs", *forms], rows)
    chapter.table("eidetic-held", ["pairs in the text", f"of {memory} kept: pairs", "echoes"], [[pairs, *numbers] for pairs, numbers in held.items()])
    with chapter.figure("eidetic", size=(6, 5.4), nrows=2) as (_, (above, below)):
        shown = np.arange(4 * PERIOD, length - window)
        above.plot(shown, surprise[shown], color="#808080", linewidth=1.0, label="innovation")
        above.plot(spots, surprise[spots], "o", color="#2f7ebf", label="a pair")
        above.plot(spots + PERIOD, surprise[spots + PERIOD], "x", color="#d0691f", label=f"{PERIOD} positions later")
        above.set(xlabel="position", ylabel="innovation", ylim=(-0.2, 1.35 * surprise[shown].max()))
        above.legend(loc="upper center", ncols=3, columnspacing=1.0, handletextpad=0.4)
        for name, line in zip(forms, (":", "-", "--", "-", "-", "-"), strict=True):
            below.plot(counts, found[name], line, marker=".", label=name)
        below.axvline(memory, color="#808080", linewidth=0.8, linestyle=":")
        below.set(xlabel="pairs", ylabel="recalled", ylim=(-0.03, 1.05))
        below.legend(loc="lower left", bbox_to_anchor=(0.01, 0.3))
    names = list(forms)
    without, kept_few, kept_more = found[names[2]], found[names[3]], found[names[4]]
    few, many = counts.index(8), counts.index(32)
    at_memory = counts.index(memory)
    for key, number in {
        "length": length, "window": window, "memory": memory, "trials": trials, "period": PERIOD, "without": without[few], "with": kept_few[few],
        "full_memory": kept_few[at_memory], "twice": kept_more[at_memory], "held": held[memory][0], "echoes": held[memory][1],
    }.items():  # fmt: skip
        chapter.value(f"eidetic.{key}", number)
    chapter.claim(
        "What fades is not recalled; a few tokens kept word for word are",
        paper="Zancato et al. 2024, arXiv:2407.06324, abstract: on associative recall B'MOJO is better than state-space models and other hybrids",
        expect="8 pairs, far outside the window: by guessing 1 in 8 with window and fading tokens; at least 0.95 with a memory of 16",
        measured=f"{without[few]:.2f} without, {kept_few[few]:.2f} with",
        holds=without[few] < 0.3 and kept_few[few] >= 0.95,
    )
    chapter.claim(
        "A memory recalls until it is full",
        paper="the same, abstract: memory grows to a finite bound",
        expect=f"32 pairs and {memory} places: at most half of them, and more with {2 * memory} places; full attention recalls all",
        measured=f"{kept_few[many]:.2f}, {kept_more[many]:.2f} and {found[names[5]][many]:.2f}",
        holds=kept_few[many] <= 0.55 and kept_few[many] + 0.1 < kept_more[many] < found[names[5]][many],
    )
    chapter.claim(
        "A surprise echoes, and the echo takes a place",
        paper="not in the paper; a consequence of the innovation test wherever the predictor reads past tokens",
        expect=f"as many pairs as places, {memory}: fewer than {memory} pairs kept, and most other places taken {PERIOD} positions after a pair",
        measured=f"{held[memory][0]:.1f} pairs and {held[memory][1]:.1f} echoes in {memory} places",
        holds=held[memory][0] < memory - 1 and held[memory][1] > 0.6 * (memory - held[memory][0]),
    )

    rng, sizes, rounds = chapter.rng(), (512, 1024) if chapter.quick else (512, 1024, 2048, 4096, 8192), 2 if chapter.quick else 5
    params = init_bmojo(rng, 32, num_heads=2)
    texts = {n: rng.normal(size=(n, 32)).astype(np.float32) for n in sizes}
    times = {n: [] for n in sizes}
    for _ in range(rounds):
        for n, x in texts.items():
            started = time.perf_counter()
            out, backward = bmojo_blocks(params, x, num_heads=2, window=window, memory=memory)
            backward(out)
            times[n].append(time.perf_counter() - started)
    longest = sizes[-3:]
    power = float(np.polyfit(np.log(longest), np.log([np.median(times[n]) for n in longest]), 1)[0])
    chapter.value("eidetic.time_exponent", power)
    chapter.claim(
        "Three memories cost as much a token however long the text is",
        paper="the same, abstract: finite resources in use, and models up to 10 % faster to train than others of their size",
        expect="time of forward and backward grows as the length to the power 1, within 0.25",
        measured=f"power {power:.2f} from {longest[0]} to {longest[-1]} positions",
        holds=abs(power - 1) < 0.25,
        full_only=True,
    )


eidetic_section()


# %%
if __name__ == "__main__":
    raise SystemExit(chapter.finish())
