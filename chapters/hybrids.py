"""Hybrids: a recurrence for the long past, attention for what must be exact.

What a state of fixed size forgets, what a window cannot reach, and what a little attention between recurrences, shared
or not, gives back.
"""

# %%
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.cli.chapter import Chapter
from minitransformers.foundation import trees
from minitransformers.hybrids.samba import init_samba, samba
from minitransformers.models.language_model import LanguageModelConfig
from minitransformers.models.transformer_block import TransformerBlock, transformer_block
from minitransformers.norms.rms_norm import RmsNorm, init_rms_norm, rms_norm
from minitransformers.state_space.causal_convolution import CausalConvolution, causal_convolution, init_causal_convolution
from minitransformers.training.fit import accuracy, fit, loss_on
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.tasks import associative_recall

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
    rows, heard = [], {}
    for name, stack in stacks.items():
        out, after = (samba(stack, a, num_heads=2, window=window)[0] for a in (x, changed))
        change = np.linalg.norm(after - out, axis=-1)
        heard[name] = change
        rows.append([name, int(np.flatnonzero(change)[-1]), *(float(change[k]) for k in (1, 3 * (window - 1), 3 * (window - 1) + 1, length - 1))])
    edge = 3 * (window - 1)
    chapter.table("reach", ["stack", "heard how far", "change at 1", f"at {edge}", f"at {edge + 1}", f"at {length - 1}"], rows)
    chapter.value("reach.window", window)
    chapter.value("reach.edge", edge)
    with chapter.figure("reach") as (_, ax):
        for name, change in heard.items():
            shown = np.where(change > 0, change, np.nan)
            ax.semilogy(np.arange(1, length), shown[1:], label=name)
        ax.axvline(edge, color="#808080", linewidth=0.8, linestyle=":")
        ax.set(xlabel="positions after the change", ylabel="change of the output")
        ax.legend(loc="upper right")
    chapter.claim(
        "Windows hear as far as they reach and no further; one recurrence hears everything",
        paper="Ren et al. 2024, arXiv:2406.07522, section 1: a window's reach is its size times the depth, a state's has no bound",
        expect=f"three windows of {window}: exactly nothing past {edge} positions; with Mamba anywhere in the stack: something at all of {length - 1}",
        measured=f"windows alone: {rows[0][1]} positions, change 0 after; with one Mamba: {rows[1][1]} and {rows[2][1]}, "
        f"and {heard['Samba, 6 layers'][-1]:.0e} in all of Samba",
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
        layers = config.movers[0].init(rng, **settings)
    else:
        layers = [TransformerBlock(fresh("norm"), mixer.init(rng, **settings), fresh("norm"), fresh("channel")) for mixer in config.movers]
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
        hidden, stack_backward = bound.movers[0].call(params.layers, hidden)
    else:
        for block, mixer in zip(params.layers, bound.movers, strict=True):
            hidden, block_backward = transformer_block(block, hidden, mixer=mixer.call, channel=bound.channel, norm=bound.norm)
            backwards.append(block_backward)
    normed, norm_backward = rms_norm(params.norm, hidden)
    logits, head_backward = linear(params.head, normed)

    def backward(dlogits):
        dhead, dnormed = head_backward(dlogits)
        dnorm, dhidden = norm_backward(dnormed)
        if stack_backward is not None:
            dlayers, dhidden = stack_backward(dhidden)
        else:
            dlayers = []
            for block_backward in reversed(backwards):
                dblock, dhidden, _ = block_backward(dhidden)
                dlayers.insert(0, dblock)
        dconvolution, dwords, _ = convolution_backward(dhidden)
        return Reader(words_backward(dwords), dconvolution, dlayers, dnorm, dhead)

    return logits, backward


def recall_section():
    length, vocabulary, window, d_state = 32, 40, 8, 8
    pairs, steps = (1, 2, 4, 6, 8), 20 if chapter.quick else 600
    shared = {"vocabulary_size": vocabulary, "context": length, "d_model": 32, "num_layers": 2, "num_heads": 2, "norm": "rms_norm"}

    def blocks(position, hidden, **mixer):
        name = mixer.pop("mixer", "multi_head_attention")
        options = {"mixer": mixer, "channel": {"d_hidden": hidden}}
        return LanguageModelConfig(**shared, mixer=name, channel="gated_feed_forward", position=position, options=options)

    def stack(name, **options):
        return LanguageModelConfig(**shared, stack=name, position="rope", options={"stack": {"d_state": d_state, **options}})

    models = {                                               # hidden widths with which all have as many parameters
        "full attention": blocks("rope", 136),
        f"window of {window}": blocks("rope", 137, mixer="sliding_window_attention", window=window),
        "Mamba": blocks("none", 94, mixer="mamba", d_state=d_state),
        f"Samba, window of {window}": stack("samba", window=window, d_hidden=116),
        "Zamba": stack("zamba", every=2, d_hidden=28),
    }
    keys = dict(zip(models, ("attention", "window", "mamba", "samba", "zamba"), strict=True))
    rows, found = [], {}
    for name, config in models.items():
        rng = chapter.rng()
        model = partial(reader, config=config)

        def draw(rng=rng):
            count = int(rng.integers(1, max(pairs) + 1))
            return associative_recall(rng, batch_size=32, length=length, num_pairs=count, vocabulary_size=vocabulary, random_filler=False)

        params = init_reader(rng, config)
        progress = partial(chapter.progress, text=name)
        params = fit(params, loss_on(model, draw), steps=steps, peak=1e-2, progress=progress)
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
            ax.plot(pairs, right, marker="o", label=name)
        ax.plot(pairs, [1 / count for count in pairs], "--", color="#808080", label="one of the values, by chance")
        ax.set(xlabel="pairs to remember", ylabel="recalled", ylim=(0, 1.05), xticks=pairs)
        ax.legend()
    most = {name: right[-1] for name, right in found.items()}
    mamba, samba_right = most["Mamba"], most[f"Samba, window of {window}"]
    chapter.claim(
        "A little attention gives a recurrence its recall back",
        paper="Glorioso et al. 2024, arXiv:2405.16712, section 2: one shared attention block is nearly enough; Arora et al. 2023, arXiv:2312.04927: "
        "attention recalls at any width, a state of fixed size does not",
        expect=f"of {pairs[-1]} pairs full attention and Zamba recall over 90 %, Mamba and a window of {window} under half, at equal parameters and steps",
        measured=", ".join(f"{name} {100 * right:.0f} %" for name, right in most.items()) + f"; parameters within {100 * (max(sizes) / min(sizes) - 1):.0f} %",
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


# %%
if __name__ == "__main__":
    raise SystemExit(chapter.finish())
