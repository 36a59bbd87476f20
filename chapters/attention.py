"""Attention: each position reads from the others by content.

What the formula promises can be measured: why scores are divided by √d, what attention cannot know without positions, how
far a stack of windows sees and what it costs, what a cap leaves of a gradient, what happens when a trained model must
share its keys, and what becomes of focus, norms and learning when another weighting takes the softmax's place.
"""

# %%
import copy
import time
import tracemalloc
from functools import partial
from typing import NamedTuple

import numpy as np

from minitransformers.attention.banded_attention import banded_attention
from minitransformers.attention.banded_attention_blocks import banded_attention_blocks
from minitransformers.attention.core import causal, softmax_attention
from minitransformers.attention.cross_attention import CrossAttention, cross_attention, init_cross_attention
from minitransformers.attention.fading import fading, largest_possible
from minitransformers.attention.grouped_query_attention import (
    grouped_query_attention,
    grouped_query_attention_step,
    init_grouped_query_attention,
    pool_heads,
)
from minitransformers.attention.heads import split_heads
from minitransformers.attention.masks import band_mask, causal_mask, prefix_mask, segment_mask, sliding_window_mask
from minitransformers.attention.multi_head_attention import MultiHeadAttention, init_multi_head_attention, multi_head_attention
from minitransformers.attention.polynomial_attention import polynomial_weights
from minitransformers.attention.relu_attention import relu_weights
from minitransformers.attention.scalable_softmax import (
    ScalableSoftmax,
    init_scalable_softmax,
    scalable_softmax,
    scalable_softmax_attention,
)
from minitransformers.attention.scaled_dot_product_attention import attention_weights, scaled_dot_product_attention
from minitransformers.attention.sigmoid_attention import sigmoid_weights
from minitransformers.attention.sliding_window_attention import (
    init_sliding_window_attention,
    sliding_window_attention,
    sliding_window_attention_step,
)
from minitransformers.attention.soft_cap import soft_cap
from minitransformers.attention.sparsemax import sparsemax
from minitransformers.basics.chain import chain
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.softmax import softmax
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model
from minitransformers.reporting.chapter import Chapter
from minitransformers.training.fit import fit
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.task import Labelled, on_ids
from minitransformers.training.text import Corpus

chapter = Chapter("attention", __doc__)


def exponent(sizes, costs):
    """The slope of a straight line through the logarithms: cost grows as size to this power."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


# %% Masks: who may read whom
def masks_section():
    segments = np.array([0] * 5 + [1] * 4 + [2] * 3)
    masks = {
        "causal": causal_mask(12),
        "window of 4": sliding_window_mask(12, window=4),
        "band, reach 2": band_mask(12, reach=2),
        "prefix of 5": prefix_mask(12, prefix=5),
        "causal & segments": causal_mask(12) & segment_mask(segments)[0],
    }
    with chapter.figure("masks", size=(7.2, 1.9), ncols=5) as (_, axes):
        for ax, (name, mask) in zip(axes, masks.items(), strict=True):
            ax.imshow(np.where(mask, 1.0, np.nan), vmin=0, vmax=1.6, cmap="Blues", interpolation="none")
            ax.set(title=name, xticks=[], yticks=[])
            ax.spines[:].set_visible(True)
            ax.grid(False)
        axes[0].set(xlabel="keys", ylabel="queries")


masks_section()


# %% The scale: unscaled scores grow with √d, and a softmax of large scores stops learning
def scale_section():
    rng, keys = chapter.rng(), 64
    widths, queries = [4, 16, 64, 256, 1024], 50 if chapter.quick else 1000
    found = {"scaled": [], "unscaled": []}
    for d in widths:
        q, k = rng.normal(size=(queries, d)), rng.normal(size=(keys, d))
        for name, scale in (("scaled", d**-0.5), ("unscaled", 1.0)):
            weights = attention_weights(q, k, scale=scale)
            squares, cubes = (weights**2).sum(-1), (weights**3).sum(-1)
            # |diag(p) - p pᵀ|² = Σp² - 2 Σp³ + (Σp²)²
            jacobian = np.sqrt(np.maximum(squares - 2 * cubes + squares**2, 0))
            found[name].append((float(weights.max(-1).mean()), float(jacobian.mean())))
    with chapter.figure("scale", size=(6.4, 2.8), ncols=2) as (_, axes):
        for i, (ax, title) in enumerate(zip(axes, ("largest weight of a query", "size of the softmax Jacobian"), strict=True)):
            for name, label in (("unscaled", "scores q·k"), ("scaled", "scores q·k / √d")):
                ax.semilogx(widths, [pair[i] for pair in found[name]], marker="o", base=2, label=label)
            ax.set(xlabel="d", title=title, ylim=(0, 1.05 if i == 0 else None), xticks=widths, xticklabels=widths)
            ax.minorticks_off()
        axes[0].legend()
    for name, pairs in found.items():
        for d, (largest, jacobian) in zip(widths, pairs, strict=True):
            chapter.value(f"scale.{name}.largest.d{d}", largest)
            chapter.value(f"scale.{name}.jacobian.d{d}", jacobian)
    spread = max(p[0] for p in found["scaled"]) - min(p[0] for p in found["scaled"])
    peak = max(p[1] for p in found["unscaled"])
    chapter.claim(
        "Without 1/√d the softmax saturates as d grows",
        paper="Vaswani et al. 2017, section 3.2.1: for large d the products push the softmax into regions of extremely small gradients",
        expect="unscaled: largest weight towards 1, Jacobian falling; scaled: both flat in d",
        measured=f"d = 1024: largest weight {found['unscaled'][-1][0]:.2f} against {found['scaled'][-1][0]:.2f}; the unscaled Jacobian "
        f"falls from {peak:.2f} to {found['unscaled'][-1][1]:.3f}; scaled, the largest weight varies by {spread:.2f}",
        holds=found["unscaled"][-1][0] > 0.9 and found["unscaled"][-1][1] < 0.25 * peak and spread < 0.1,
    )


scale_section()


# %% What attention knows: sets, not sequences; and nothing of the future under a causal mask
def order_section():
    rng, n, d_model = chapter.rng(), 10, 16
    params = init_multi_head_attention(rng, d_model, num_heads=4, dtype=np.float64)
    x, places, order = rng.normal(size=(n, d_model)), rng.normal(size=(n, d_model)), rng.permutation(n)
    attend = partial(multi_head_attention, params, num_heads=4, core=softmax_attention)
    blind = float(np.abs(attend(x[order])[0] - attend(x)[0][order]).max())
    placed = float(np.abs(attend(x[order] + places)[0] - attend(x + places)[0][order]).max())
    chapter.value("order.difference", blind)
    chapter.value("order.with_positions", placed)
    chapter.claim(
        "Attention without positions does not know the order",
        paper="Vaswani et al. 2017, section 3.5: without recurrence, order must be put in by positional encodings",
        expect="shuffled inputs give shuffled outputs up to rounding; not so once each position adds a vector of its own",
        measured=f"largest difference {blind:.0e}; with position vectors {placed:.2g}",
        holds=blind < 1e-12 and placed > 0.1,
    )

    look_back = partial(multi_head_attention, params, num_heads=4)
    changed = x.copy()
    changed[6:] = rng.normal(size=(n - 6, d_model))
    same = bool(np.array_equal(look_back(x)[0][:6], look_back(changed)[0][:6]))
    out, backward = look_back(x)
    dout = np.zeros_like(out)
    dout[:6] = rng.normal(size=(6, d_model))
    leak = float(np.abs(backward(dout)[1][6:]).max())
    cut = 3                                                  # three new queries on ten keys
    q, k, v = (rng.normal(size=(n, 8)) for _ in range(3))
    full = scaled_dot_product_attention(q, k, v, mask=causal_mask(n))[0][-cut:]
    right = scaled_dot_product_attention(q[-cut:], k, v, mask=causal_mask(cut, n))[0]
    wrong = scaled_dot_product_attention(q[-cut:], k, v, mask=np.tri(cut, n, dtype=bool))[0]
    misaligned = float(np.abs(wrong - full).max())
    chapter.value("causal.leak", leak)
    chapter.value("causal.misaligned", misaligned)
    chapter.claim(
        "A causal mask leaks nothing",
        paper="Vaswani et al. 2017, section 3.2.3: leftward information flow is prevented by setting scores to minus infinity",
        expect="earlier outputs identical to the bit when later tokens change; gradients to later tokens exactly zero",
        measured=f"{'identical' if same else 'changed'}; largest gradient {leak:g}. The last queries against all keys agree with the full "
        f"pass to {np.abs(right - full).max():.0e}; with the mask aligned to the first key they are off by {misaligned:.2g}",
        holds=same and leak == 0 and float(np.abs(right - full).max()) < 1e-12 and misaligned > 0.1,
    )

    biased = params._replace(key=params.key._replace(bias=rng.normal(size=d_model)))
    dparams, _, _ = multi_head_attention(biased, x, num_heads=4)[1](rng.normal(size=x.shape))
    key, query = float(np.abs(dparams.key.bias).max()), float(np.abs(dparams.query.bias).max())
    chapter.value("key_bias.key", key)
    chapter.value("key_bias.query", query)
    chapter.claim(
        "A bias on the keys learns nothing",
        paper="not in the paper: q·(k + b) adds q·b to all scores of a query, and a softmax ignores what all scores share",
        expect="gradient zero up to rounding, that of the query bias not",
        measured=f"largest element {key:.0e}, of the query bias {query:.2g}",
        holds=key < 1e-13 and query > 1e-3,
    )


order_section()


# %% Windows: how far a stack of them sees
def reach_section():
    rng, n, window, layers = chapter.rng(), 24, 4, 4
    params = init_sliding_window_attention(rng, 16, num_heads=4, num_kv_heads=2, dtype=np.float64)
    attend = partial(sliding_window_attention, params, num_heads=4, window=window)
    x, backwards, jacobians = rng.normal(size=(n, 16)), [], []
    h = x
    for _ in range(layers):
        h, backward = attend(h)
        backwards.append(backward)
        jacobian = np.zeros((n, n))
        for i in range(n):
            dh = np.zeros_like(x)
            dh[i] = rng.normal(size=16)
            for back in reversed(backwards):
                _, dh, _ = back(dh)
            jacobian[i] = np.linalg.norm(dh, axis=-1)
        jacobians.append(jacobian)
    with chapter.figure("reach", size=(7.2, 2.2), ncols=layers) as (_, axes):
        for k, (ax, jacobian) in enumerate(zip(axes, jacobians, strict=True), start=1):
            logs = np.where(jacobian > 0, np.log10(np.where(jacobian > 0, jacobian, 1)), np.nan)
            ax.imshow(logs, cmap="Blues", vmin=-5.5, vmax=0.5, interpolation="none")
            ax.set(title=f"{k} layer{'s' if k > 1 else ''}: {k * (window - 1) + 1}", xticks=[], yticks=[])
            ax.spines[:].set_visible(True)
            ax.grid(False)
        axes[0].set(xlabel="input position", ylabel="output position")
    reaches = [int((jacobian[-1] > 0).sum()) for jacobian in jacobians]
    exact = all(
        np.array_equal(jacobian > 0, sliding_window_mask(n, window=k * (window - 1) + 1)) for k, jacobian in enumerate(jacobians, start=1)
    )
    chapter.value("reach.window", window)
    chapter.value("reach.positions", ", ".join(map(str, reaches)))
    chapter.claim(
        "k layers of windows reach k (W − 1) + 1 positions",
        paper="Jiang et al. 2023, section 2: a token attends to up to W tokens a layer, so after k layers to up to k × W",
        expect=f"gradients exactly zero beyond {', '.join(str(k * (window - 1) + 1) for k in range(1, layers + 1))} positions, none zero within",
        measured=f"W = {window}, one to {layers} layers: {', '.join(map(str, reaches))} positions, the own one included; k W is that rounded up",
        holds=exact,
    )

    state, rolling = None, []
    for t in range(n):
        _, state = sliding_window_attention_step(params, x[None, t : t + 1], state, num_heads=4, window=window)
        rolling.append(state.bytes)
    full = {}
    for kv_heads in (4, 2, 1):
        shared, state = init_grouped_query_attention(rng, 16, num_heads=4, num_kv_heads=kv_heads), None
        for t in range(n):
            step = x[None, t : t + 1].astype(np.float32)
            _, state = grouped_query_attention_step(shared, step, state, num_heads=4, num_kv_heads=kv_heads)
        full[kv_heads] = state.bytes
    chapter.value("cache.bytes", {str(heads): size for heads, size in full.items()})
    chapter.value("cache.rolling", rolling[-1])
    chapter.claim(
        "Sharing key heads shrinks the cache by the number that share, and a window stops its growth",
        paper="Shazeer 2019 and Ainslie et al. 2023, section 2: the cache shrinks by the group's size; Jiang et al. 2023: a rolling buffer of W entries",
        expect="bytes in the ratio 4 : 2 : 1 for 4, 2 and 1 key heads; the rolling cache constant from position W on",
        measured=f"{full[4]}, {full[2]} and {full[1]} bytes after {n} positions; rolling: {rolling[window - 1]} bytes at position {window}, {rolling[-1]} at {n}",
        holds=full[4] == 2 * full[2] == 4 * full[1] and rolling[window - 1] == rolling[-1],
    )


reach_section()


# %% Decoding: keys and values of the past are kept
def decoding_section():
    rng, width, heads = chapter.rng(), 64, {"num_heads": 4, "num_kv_heads": 2}
    exact = init_grouped_query_attention(rng, width, **heads, dtype=np.float64)
    x, worst = rng.normal(size=(2, 40, width)), 0.0
    for window in (None, 8):
        mask = None if window is None else sliding_window_mask(40, window=window)
        near = {} if window is None else {"core": partial(banded_attention_blocks, window=window), "window": window}
        whole, _ = grouped_query_attention(exact, x, **heads, mask=mask)
        for pieces in ([1] * 40, [25] + [1] * 15, [7, 13, 1, 19]):
            state, stop = None, 0
            for new in pieces:
                start, stop = stop, stop + new
                out, state = grouped_query_attention_step(exact, x[:, start:stop], state, **heads, **near)
                worst = max(worst, float(np.abs(out - whole[:, start:stop]).max()))
    chapter.value("decoding.difference", worst)

    tokens = 64 if chapter.quick else 256
    params, text = init_grouped_query_attention(rng, width, **heads), rng.normal(size=(1, tokens, width)).astype(np.float32)

    def seconds(call):
        """The best of a few runs, in this thread's own time: other work on the machine does not count."""
        times = []
        for _ in range(5):
            begin = time.thread_time()
            call()
            times.append(time.thread_time() - begin)
        return min(times)

    state, places, cached, again = None, [], [], []
    for t in range(0, tokens, 16):                           # every sixteenth token is timed, both ways
        _, state = grouped_query_attention_step(params, text[:, t : t + 15], state, **heads)
        one = text[:, t + 15 : t + 16]
        forks = iter([copy.deepcopy(state) for _ in range(5)])
        cached.append(seconds(lambda: grouped_query_attention_step(params, one, next(forks), **heads)))
        again.append(seconds(lambda: grouped_query_attention(params, text[:, : t + 16], **heads)))
        _, state = grouped_query_attention_step(params, one, state, **heads)
        places.append(t + 16)
    cached, again = np.array(cached), np.array(again)
    with chapter.figure("decoding", size=(4.6, 2.8)) as (_, ax):
        for label, times in (("the whole text again", again), ("with a cache", cached)):
            ax.plot(places, times / np.median(cached), label=label)
        ax.set(xlabel="tokens so far", ylabel="time of the next token\n(with a cache = 1)", yscale="log")
        ax.legend()
    chapter.value("decoding.tokens", tokens)
    chapter.value("decoding.times_faster", float(again.sum() / cached.sum()))
    chapter.claim(
        "A text read in pieces equals the text read at once, and costs less",
        paper="Shazeer 2019, section 2.4: decoding step by step computes what the whole computes, from the keys and values kept",
        expect="equal to 1e-12 for single steps, prompts and a rolling window; much faster than reading everything again for each token",
        measured=f"largest difference {worst:.0e}; {tokens} tokens {again.sum() / cached.sum():.0f} times as fast",
        holds=worst < 1e-12 and again.sum() > 2 * cached.sum(),
    )


decoding_section()


# %% Windows: what the blocks save
def cost_section():
    rng, window, rounds = chapter.rng(), 64, 2 if chapter.quick else 9
    # Blocks go on where a dense mask would take gigabytes: an exponent is fitted where the arrays have left the cache.
    dense_sizes, sizes = ([256, 512, 1024],) * 2 if chapter.quick else ([512, 1024, 2048, 4096], [512, 1024, 2048, 4096, 8192, 16384])

    keep_freed_memory()                                      # otherwise fresh pages are timed, not arithmetic
    forms = {"dense mask": partial(banded_attention, None, window=window), "blocks": partial(banded_attention_blocks, None, window=window)}
    times, peaks, worst = {name: [] for name in forms}, {name: [] for name in forms}, 0.0
    inputs = {n: [rng.standard_normal((n, 32), np.float32) for _ in range(3)] for n in sizes}
    # One form after the other: next to the dense form's gigabytes, the blocks would be timed with cold caches.
    for name, n in chapter.progress([("blocks", n) for n in sizes] + [("dense mask", n) for n in dense_sizes], "banded and dense attention"):
        q, k, v = inputs[n]
        laps = []
        for _ in range(rounds + 1):
            start = time.process_time()                      # not the clock: others may use this machine
            _, backward = forms[name](q, k, v)
            backward(v)
            laps.append(time.process_time() - start)
        times[name].append(min(laps[1:]))
        tracemalloc.start()
        out, backward = forms[name](q, k, v)
        found = [out, *backward(v)[1:4]]
        peaks[name].append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        if name == "dense mask":
            out, backward = forms["blocks"](q, k, v)
            worst = max(worst, *(float(np.abs(a - b).max()) for a, b in zip(found, [out, *backward(v)[1:4]], strict=True)))
    with chapter.figure("banded_cost", size=(6.4, 2.9), ncols=2) as (_, axes):
        for name in forms:
            axes[0].loglog(sizes[: len(times[name])], np.array(times[name]) / times["blocks"][0], marker="o", label=name)
            axes[1].loglog(sizes[: len(times[name])], np.array(peaks[name]) / 2**20, marker="o", label=name)
        for ax, title in zip(axes, (f"time (blocks at {sizes[0]} = 1)", "peak memory (MiB)"), strict=True):
            ax.set(xlabel="positions", title=title, xticks=sizes, xticklabels=sizes)
            ax.minorticks_off()
        axes[0].legend()
    fitted = {"dense mask": dense_sizes[-3:], "blocks": sizes[-3:]}
    time_powers = {name: exponent(fitted[name], times[name][-3:]) for name in forms}
    memory_powers = {name: exponent(fitted[name], peaks[name][-3:]) for name in forms}
    both, last = dense_sizes[-1], len(dense_sizes) - 1       # the longest that both forms did
    for name, key in (("dense mask", "dense"), ("blocks", "banded")):
        chapter.value(f"cost.{key}.time_exponent", time_powers[name])
        chapter.value(f"cost.{key}.memory_exponent", memory_powers[name])
    chapter.value("cost.longest", both)
    chapter.value("cost.window", window)
    chapter.value("cost.times_faster", times["dense mask"][-1] / times["blocks"][last])
    chapter.value("cost.times_smaller", peaks["dense mask"][-1] / peaks["blocks"][last])
    chapter.value("cost.difference", worst)
    chapter.claim(
        "A window computed in blocks costs n W, not n²",
        paper="Beltagy et al. 2020, section 3.1: time and memory O(n w), linear in n",
        expect="fitted exponents near 1 for blocks and near 2 for the dense mask, in memory closely and in time roughly",
        measured=f"time: n^{time_powers['blocks']:.2f} against n^{time_powers['dense mask']:.2f}; memory: n^{memory_powers['blocks']:.2f} "
        f"against n^{memory_powers['dense mask']:.2f}; at n = {both}, W = {window}: "
        f"{times['dense mask'][-1] / times['blocks'][last]:.0f} times faster; results differ by {worst:.0e} (float32)",
        holds=memory_powers["blocks"] < 1.1 and memory_powers["dense mask"] > 1.8 and worst < 1e-5
        and time_powers["blocks"] < 1.35 and time_powers["dense mask"] > 1.6,
        full_only=True,
    )  # fmt: skip


cost_section()


# %% A cap: bounded scores that can still come back
def cap_section():
    cap, x = 50.0, np.linspace(0, 200, 401)
    capped, backward = soft_cap(x, cap=cap)
    slope = backward(np.ones_like(x))
    clipped = (x < cap).astype(float)
    with chapter.figure("soft_cap", size=(6.4, 2.8), ncols=2) as (_, axes):
        axes[0].plot(x, np.minimum(x, cap), "--", label="clip")
        axes[0].plot(x, capped, label="soft cap")
        axes[0].set(xlabel="score", title=f"what goes on (cap {cap:.0f})")
        axes[0].legend()
        axes[1].semilogy(x[x < cap], clipped[x < cap], "--")
        axes[1].semilogy(x, slope)
        axes[1].set(xlabel="score", title="gradient (the clip's ends)", ylim=(1e-3, 1.5))

    def steps_back(squash):
        """Updates until a key whose score has run off to three caps loses to one at 0, with the loss -log(weight)."""
        score = 3 * 5.0
        for step in range(1, 5001):
            out, back = squash(np.array([score]))
            score -= float(back(1 / (1 + np.exp(-out)))[0])  # the derivative of log(1 + exp(out))
            if score < 0:
                return step
        return None

    soft = steps_back(partial(soft_cap, cap=5.0))
    hard = steps_back(lambda s: (np.clip(s, -5, 5), lambda dout: dout * (np.abs(s) < 5)))
    chapter.value("soft_cap.slope_at_200", float(slope[-1]))
    chapter.value("soft_cap.steps_back", soft)
    chapter.claim(
        "A soft cap keeps a gradient where a clip has none",
        paper="Gemma Team 2024, section 2: logits are capped by soft_cap · tanh(logits / soft_cap)",
        expect="at four caps a small gradient against exactly zero; a score that has run off returns, a clipped one never",
        measured=f"gradient at 200 with cap 50: {slope[-1]:.1e} against 0; from three caps back below zero in {soft} updates, "
        f"clipped: {'not in 5000' if hard is None else hard}",
        holds=bool(slope[-1] > 0) and capped[-1] < cap and soft is not None and hard is None,
    )


cap_section()


def bar(text):
    """What fit shows while it runs."""
    return partial(chapter.progress, text=text)


# %% Cross-attention: an alignment that nobody showed it
class Reverser(NamedTuple):
    """Symbols with their places are the memory; each output place asks it with a vector of its own."""

    symbols: Embedding
    places: Embedding
    questions: Embedding
    attention: CrossAttention
    head: Linear


def reverser(params, *, ids):
    places = np.broadcast_to(np.arange(ids.shape[-1]), ids.shape)
    symbols, symbols_backward = embedding(params.symbols, ids=ids)
    offsets, places_backward = embedding(params.places, ids=places)
    questions, questions_backward = embedding(params.questions, ids=places)
    read, attention_backward = cross_attention(params.attention, questions, symbols + offsets, num_heads=1)
    logits, head_backward = linear(params.head, read)

    def backward(dlogits):
        dhead, dread = head_backward(dlogits)
        dattention, dquestions, dmemory, _ = attention_backward(dread)
        return Reverser(
            symbols_backward(dmemory), places_backward(dmemory), questions_backward(dquestions), dattention, dhead
        )

    return logits, backward


def reversal_section():
    rng, length, kinds, width = chapter.rng(), 8, 10, 32
    params = Reverser(
        init_embedding(rng, kinds, width, std=1.0), init_embedding(rng, length, width, std=1.0), init_embedding(rng, length, width, std=1.0),
        init_cross_attention(rng, width, num_heads=1), init_linear(rng, width, kinds),
    )  # fmt: skip

    def draw(rng):
        ids = rng.integers(kinds, size=(64, length))
        return ids, ids[:, ::-1]

    steps = 100 if chapter.quick else 400
    params = fit(params, Labelled(on_ids(reverser), draw), steps=steps, peak=1e-2, rng=rng, progress=bar("learning to reverse"))
    ids = rng.integers(kinds, size=(256, length))
    exact = float((reverser(params, ids=ids)[0].argmax(-1) == ids[:, ::-1]).all(-1).mean())
    memory = params.symbols.weight[ids] + params.places.weight
    q, k = linear(params.attention.query, params.questions.weight)[0], linear(params.attention.key, memory)[0]
    weights = attention_weights(split_heads(q, 1), split_heads(k, 1)).mean((0, 1))
    diagonal = float(np.trace(weights[:, ::-1]) / length)
    with chapter.figure("alignment", size=(3.4, 3)) as (fig, ax):
        image = ax.pcolormesh(weights, cmap="Blues", vmin=0, vmax=1, edgecolors="#808080", linewidth=0.1)
        ticks, places = np.arange(length) + 0.5, range(1, length + 1)
        ax.set(xlabel="symbol that is read", ylabel="symbol that is written", aspect="equal")
        ax.set(xticks=ticks, xticklabels=places, yticks=ticks, yticklabels=places)
        ax.invert_yaxis()
        ax.grid(False)
        fig.colorbar(image, label="weight")
    chapter.value("reversal.exact", 100 * exact)
    chapter.value("reversal.diagonal", 100 * diagonal)
    chapter.value("reversal.steps", steps)
    chapter.value("reversal.length", length)
    chapter.claim(
        "Cross-attention finds the alignment by itself",
        paper="Bahdanau et al. 2014, section 5.2.1 (the alignment of source and target words appears in the weights); Vaswani et al. 2017, section 3.2.3",
        expect="a toy that must reverse its input puts its weight on the anti-diagonal",
        measured=f"after {steps} updates {100 * exact:.0f} % of new sequences reversed exactly; {100 * diagonal:.0f} % of the weight on the anti-diagonal",
        holds=exact > 0.99 and diagonal > 0.8,
        full_only=True,
    )


reversal_section()


# %% Real text: what a window costs, what other weightings make of it, and what sharing the keys of a trained model costs
KEYS = {"softmax": "softmax", "SSMax": "ssmax", "softmax off by one": "off_by_one", "sigmoid": "sigmoid", "ReLU": "relu",
        "sparsemax": "sparsemax", "cube / √n": "cube", "Gaussian kernel": "gaussian"}  # fmt: skip


def text_section():
    context, d_model, num_heads = 64, 64, 4
    steps, seeds = (20, 1) if chapter.quick else (170, 3)
    corpus = Corpus.load(context=context)
    shared = {"vocabulary_size": corpus.vocabulary.size, "context": context, "d_model": d_model, "num_layers": 2, "num_heads": num_heads,
              "position": "rope"}  # fmt: skip

    def task(config):
        return Labelled(on_ids(partial(language_model, config=config)), partial(corpus.batch, batch_size=12, context=context))

    def bits(params, config):
        """Bits a character on windows of held-out text, always the same."""
        ids, targets = next(corpus.evaluation_batches(batch_size=128, context=context, limit=16 if chapter.quick else 128))
        return float(cross_entropy(language_model(params, ids=ids, config=config)[0], targets=targets)[0]) / np.log(2)

    def trained(config, seed):
        rng = np.random.default_rng(chapter.seed + seed)
        return fit(init_language_model(rng, config, std=0.1), task(config), steps=steps, peak=1e-2, rng=rng, progress=bar(config.mixer))

    full = LanguageModelConfig(**shared)
    models = [trained(full, seed) for seed in range(seeds)]
    full_bits = bits(models[0], full)
    rows = [["all", 2 * context, full_bits]]
    for window in (1, 4, 16):
        config = LanguageModelConfig(**shared, mixer="sliding_window_attention", options={"mixer": {"window": window}})
        rows.append([str(window), 2 * (window - 1) + 1, bits(trained(config, 0), config)])
    rows[0][1] = context
    chapter.table("windows", ["window", "reach of 2 layers", "bits a character"], rows)
    by_window = {row[0]: row[2] for row in rows}
    for name, value in by_window.items():
        chapter.value(f"windows.bits.{name}", value)
    chapter.claim(
        "A window of a quarter of the context loses little",
        paper="Jiang et al. 2023, section 2: depth restores what a window cuts off",
        expect="a window of 16 in a context of 64 within 0.1 bits of full attention; one of 1, which reads nothing, clearly worse",
        measured="bits a character on held-out text: " + ", ".join(f"{value:.2f} with {name}" for name, value in by_window.items()),
        holds=by_window["16"] < full_bits + 0.1 and by_window["1"] > full_bits + 0.1,
        full_only=True,
    )

    alone = {
        "SSMax": "scalable_softmax_attention",               # with a scale for each head that is trained along
        "softmax off by one": "softmax_off_by_one_attention",
        "sigmoid": "sigmoid_attention",
        "ReLU": "relu_attention",
        "sparsemax": "sparsemax_attention",
        "cube / √n": "polynomial_attention",
        "Gaussian kernel": "gaussian_kernel_attention",      # weighs distances, not scores
    }
    of_seeds = [full_bits, *(bits(params, full) for params in models[1:])]
    found = {"softmax": full_bits}
    for name, core in alone.items():
        config = LanguageModelConfig(**shared, options={"mixer": {"core": core}})
        found[name] = bits(trained(config, 0), config)
    chapter.table("weightings", ["weighting", "bits a character", "more than the softmax"],
                  [[name, value, value - full_bits] for name, value in sorted(found.items(), key=lambda pair: pair[1])])  # fmt: skip
    spread = max(of_seeds) - min(of_seeds)
    chapter.value("weightings.spread_of_seeds", spread)
    chapter.value("weightings.steps", steps)
    for name, key in KEYS.items():
        chapter.value(f"weightings.bits.{key}", found[name])
    behind = [name for name in found if found[name] > found["softmax"] + 0.1]
    chapter.value("weightings.behind", ", ".join(behind) or "none")
    chapter.claim(
        "Nothing in learning to attend needs a softmax",
        paper="Ramapuram et al. 2024, Wortsman et al. 2023, Nakanishi 2025, Saratchandran et al. 2024: each weighting trains about as well as the softmax",
        expect="same seed and budget: all within 0.1 bits of the softmax",
        measured=", ".join(f"{name} {value:.2f}" for name, value in found.items()) + f"; {seeds} seeds of the softmax differ by {spread:.2f}; "
        f"a model that reads no other position has {by_window['1']:.2f}",
        holds=not behind,
        toy_scale=f"{steps} updates at one rate of learning, chosen for the softmax; others may need another rate, or more of them",
        full_only=True,
    )

    grouped = LanguageModelConfig(**shared, mixer="grouped_query_attention", options={"mixer": {"num_kv_heads": 2}})

    def converted(params, how, rng):
        def mixer(old):
            new = pool_heads(old, num_heads=num_heads, num_kv_heads=2)
            if how == "mean":
                return new

            def other(part, pooled):
                if how == "random":
                    return pooled._replace(weight=(part.weight.std() * rng.standard_normal(pooled.weight.shape)).astype(part.weight.dtype))
                first = [a.reshape(*a.shape[:-1], 2, 2, -1)[..., 0, :].reshape(*a.shape[:-1], -1) for a in part]
                return Linear(*first)

            return new._replace(key=other(old.key, new.key), value=other(old.value, new.value))

        return params._replace(blocks=[block._replace(mixer=mixer(block.mixer)) for block in params.blocks])

    rows, at_once = [], {}
    for how in ("mean", "first", "random"):
        at_once[how] = before = []
        after = []
        for seed, params in enumerate(models):
            rng = np.random.default_rng(chapter.seed + 100 + seed)
            start = converted(params, how, rng)
            before.append(bits(start, grouped))
            more = fit(start, task(grouped), steps=max(1, steps // 20), peak=3e-3, rng=rng, progress=bar(f"{how}, a little more"))
            after.append(bits(more, grouped))
        rows.append([how, float(np.mean(before)), float(np.mean(after)), float(np.std(before))])
        chapter.value(f"uptraining.{how}.before", float(np.mean(before)))
        chapter.value(f"uptraining.{how}.after", float(np.mean(after)))
    mean_wins = sum(mean < first for mean, first in zip(at_once["mean"], at_once["first"], strict=True))
    chapter.value("uptraining.mean_wins", mean_wins)
    original = float(np.mean(of_seeds))
    chapter.value("uptraining.original", original)
    chapter.value("uptraining.seeds", seeds)
    chapter.table("uptraining", ["key heads from", "bits at once", "bits after 5 % more", "spread of seeds"], rows)
    chapter.claim(
        "Trained heads are a better start for shared keys than random ones",
        paper="Ainslie et al. 2023, section 3.3: heads that keep what was learned do better than new ones",
        expect="at once and after 5 % more training, in every seed",
        measured=f"{original:.2f} bits before; " + "; ".join(f"{how} {start:.2f}, then {end:.2f}" for how, start, end, _ in rows),
        holds=max(at_once["mean"] + at_once["first"]) < min(at_once["random"]) and max(rows[0][2], rows[1][2]) < rows[2][2],
        full_only=True,
    )
    chapter.claim(
        "The mean of a group's heads is the best start",
        paper="Ainslie et al. 2023, sections 2.1 and 3.3: mean pooling before the first head before random",
        expect="the mean better than the first head at once, in every seed",
        measured=f"{rows[0][1]:.2f} against {rows[1][1]:.2f} bits; the mean is better in {mean_wins} of {seeds} seeds",
        holds=mean_wins == seeds,
        toy_scale="two small heads, trained for seconds, have little in common that a mean could keep",
        full_only=True,
    )


text_section()


# %% Fading: what more and more keys do to the weight of each
def fading_section():
    rng, sizes = chapter.rng(), [64, 256, 1024] if chapter.quick else [64, 256, 1024, 4096, 16384]
    forms = {
        "softmax": softmax,
        "SSMax": partial(scalable_softmax, ScalableSoftmax(np.array([0.43]))),  # the scale of the paper's figure 1
        "sigmoid": partial(sigmoid_weights, None),
        "ReLU": relu_weights,
        "sparsemax": sparsemax,
        "cube / √n": partial(polynomial_weights, None),
    }
    scores = {
        "random": rng.normal(size=(50, sizes[-1])),
        "marked": np.where(np.arange(sizes[-1]) == 0, 3.0, -2.0)[None],
    }
    found = {kind: {name: fading(table, sizes=sizes, weighting=weighting) for name, weighting in forms.items()} for kind, table in scores.items()}
    with chapter.figure("fading", size=(7.2, 3), ncols=2, sharey=True) as (_, axes):
        for ax, kind, title in zip(axes, scores, ("scores N(0, 1)", "one score 3, all others −2"), strict=True):
            for name in forms:
                ax.loglog(sizes, found[kind][name].largest, marker="o", label=name)
            ax.set(xlabel="keys", title=title, xticks=sizes, xticklabels=sizes)
            ax.minorticks_off()
        axes[1].plot(sizes, largest_possible(np.array(sizes), spread=5.0), "k--", linewidth=0.8, label="bound (5) of the softmax")
        axes[0].set(ylabel="largest share")
        axes[1].legend(fontsize=7)
    first, last = sizes[0], sizes[-1]
    chapter.table(
        "fading",
        ["weighting", f"largest share, {first} keys", f"{last} keys", "entropy / log n", f"effective support of {last}", "marked key"],
        [[name, float(f.largest[0]), float(f.largest[-1]), float(f.entropy[-1] / np.log(last)), float(f.support[-1]),
          float(found["marked"][name].largest[-1])] for name, f in found["random"].items()],
    )  # fmt: skip
    powers = {name: exponent(sizes, f.largest) for name, f in found["random"].items()}
    for name, key in KEYS.items():
        if name in forms:
            chapter.value(f"fading.exponent.{key}", powers[name])
            chapter.value(f"fading.first.{key}", float(found["random"][name].largest[0]))
            chapter.value(f"fading.last.{key}", float(found["random"][name].largest[-1]))
            chapter.value(f"fading.marked.{key}", float(found["marked"][name].largest[-1]))
    chapter.value("fading.keys", sizes)
    soft, scaled = found["marked"]["softmax"].largest, found["marked"]["SSMax"].largest
    chapter.claim(
        "A softmax fades as keys are added; with the base n it does not",
        paper="Nakanishi 2025, arXiv:2501.19399, figure 1: one score of 3 among scores of −2, scale 0.43",
        expect="the softmax's share of the marked key at its bound 1 / (1 + (n − 1) exp(−5)) and towards 0, SSMax's towards 1; "
        "for random scores the first falls as a power of n and the second is flat",
        measured=f"marked key from {first} to {last} keys: softmax {soft[0]:.2f} to {soft[-1]:.4f}, SSMax {scaled[0]:.3f} to {scaled[-1]:.3f}; "
        f"random scores: n^{powers['softmax']:.2f} against n^{powers['SSMax']:.2f}",
        holds=bool(np.allclose(soft, largest_possible(np.array(sizes), spread=5.0)) and np.all(np.diff(scaled) >= 0))
        and scaled[-1] > 0.99 and powers["softmax"] < -0.5 and abs(powers["SSMax"]) < 0.1,
    )  # fmt: skip
    independent = ("sigmoid", "ReLU", "cube / √n")
    chapter.claim(
        "Weights without competition fade as well",
        paper="not in the papers: a key's own weight does not depend on the others, but the sum that the values are mixed by does",
        expect="the largest share of random scores falls as a power of n for sigmoid, ReLU and cube",
        measured=", ".join(f"{name} n^{powers[name]:.2f}" for name in independent) + f"; sparsemax, for comparison, n^{powers['sparsemax']:.2f}",
        holds=all(powers[name] < -0.4 for name in independent),
    )


fading_section()


# %% The size of the matrix of weights: what a softmax bounds, and what a root of n does for a polynomial
def frobenius_section():
    rng, width, d = chapter.rng(), 64, 32
    sizes, draws = ([64, 128, 256], 1) if chapter.quick else ([64, 128, 256, 512, 1024], 4)
    cube, scaled = (partial(polynomial_weights, None, decay=decay) for decay in (0.0, 0.5))
    forms = {  # weighting, factor on the scores, exponent that is predicted
        "softmax": (softmax, 1.0, 0.5), "softmax, scores × 30": (softmax, 30.0, 0.5),
        "cube": (cube, 1.0, 1.0), "cube / √n": (scaled, 1.0, 0.5),
    }  # fmt: skip
    norms = {name: np.zeros((len(sizes), 2)) for name in forms}
    for row, n in enumerate(sizes):
        for _ in range(draws):
            x = rng.normal(size=(n, width))
            q, k = (x @ rng.normal(scale=width**-0.5, size=(width, d)) for _ in range(2))
            for name, (weighting, factor, _) in forms.items():
                weights, backward = weighting(factor * q @ k.T / d**0.5)
                # Weight (i, j) moves with entry (a, b) of W_q as x_ia (K_jb - what the softmax takes off) / √d.
                if weighting is softmax:
                    means = weights @ k
                    squares = weights**2 * ((k**2).sum(-1) - 2 * means @ k.T + (means**2).sum(-1, keepdims=True))
                else:
                    squares = backward(np.ones_like(weights))[1] ** 2 * (k**2).sum(-1)
                slope = factor * np.sqrt((squares * (x**2).sum(-1, keepdims=True)).sum() / d)
                norms[name][row] += np.linalg.norm(weights) / draws, slope / draws
    with chapter.figure("frobenius", size=(4.8, 3)) as (_, ax):
        for name, values in norms.items():
            ax.loglog(sizes, values[:, 0], marker="o", label=name)
        ax.loglog(sizes, np.sqrt(sizes), "k--", linewidth=0.8, label="√n")
        ax.set(xlabel="n", title="Frobenius norm of the weights", xticks=sizes, xticklabels=sizes)
        ax.minorticks_off()
        ax.legend(fontsize=8)
    powers = {name: (exponent(sizes, values[:, 0]), exponent(sizes, values[:, 1])) for name, values in norms.items()}
    chapter.table(
        "frobenius",
        ["weighting", "exponent predicted", "measured", "of the derivative by W_q", f"norm at {sizes[-1]}"],
        [[name, ("at most " if "softmax" in name else "") + f"{predicted:.1f}", *powers[name], float(norms[name][-1, 0])]
         for name, (_, _, predicted) in forms.items()],
    )  # fmt: skip
    for name, key in (("softmax", "softmax"), ("softmax, scores × 30", "sharp"), ("cube", "cube"), ("cube / √n", "scaled")):
        chapter.value(f"frobenius.{key}.weights", powers[name][0])
        chapter.value(f"frobenius.{key}.slope", powers[name][1])
    bounded = all(np.all(norms[name][:, 0] <= np.sqrt(sizes)) for name in forms if "softmax" in name)
    near = all(abs(found - forms[name][2]) < 0.15 for name in ("cube", "cube / √n") for found in powers[name])
    chapter.claim(
        "A softmax bounds the norm of its weights by √n, and 1/√n brings a polynomial's to the same power",
        paper="Saratchandran et al. 2024, arXiv:2410.18613: |softmax(A)| ≤ √n; for random normal inputs E|A∘p| and its derivative by W_q are O(n)",
        expect="exponents of the cube and its derivative 1 ± 0.15, divided by √n 0.5 ± 0.15; the softmax never above √n",
        measured="; ".join(f"{name}: n^{a:.2f}, derivative n^{b:.2f}" for name, (a, b) in powers.items())
        + ". The softmax of random scores stays far below its bound; only sharp rows come near it",
        holds=bounded and near,
    )


frobenius_section()


# %% Retrieval: trained at one length, asked at sixteen times that length
class Finder(NamedTuple):
    """One attention, and what was read to an answer."""

    attention: MultiHeadAttention
    head: Linear


FORMS = {  # what is trained: the core, and whether it has an offset
    "softmax": (softmax_attention, False), "SSMax": (scalable_softmax_attention, False), "SSMax, offset": (scalable_softmax_attention, True),
}  # fmt: skip


def retrieval_section():
    """Every token stores a key and a value and asks for the key of a token that it may see: the answer is that token's value.

    All sequences of training have one length. Under a causal mask the token at place t has n = t keys, so that n runs from
    1 to that length in each of them, as in a language model; without the mask n is one number throughout.
    """
    key_width, values, heads, trained, last = 32, 8, 2, 64, 16
    width, lengths = 2 * key_width + values, [trained * times for times in (1, 2, 4, 8, 16)]
    steps, seeds, tests = (20, 1, 2) if chapter.quick else (250, 3, 32)
    if chapter.quick:
        lengths = lengths[:3]

    def sequences(rng, size, n, back_only):
        keys = rng.standard_normal((size, n, key_width), np.float32)
        value = rng.integers(values, size=(size, n))
        asked = rng.integers(np.arange(1, n + 1) if back_only else n, size=(size, n))
        question = np.take_along_axis(keys, asked[..., None], axis=1)
        tokens = np.concatenate([keys, question, np.eye(values, dtype=np.float32)[value]], axis=-1)
        return tokens, asked, np.take_along_axis(value, asked, axis=1)

    def core_of(form, back_only):
        return causal(FORMS[form][0]) if back_only else FORMS[form][0]

    def finder(params, tokens, *, core):
        logits, backward = chain(params, tokens, parts=(partial(multi_head_attention, num_heads=heads, core=core), linear))
        return logits, lambda dlogits: backward(dlogits)[0]

    def learner(form, back_only, seed):
        rng = np.random.default_rng([chapter.seed, seed])
        attention = init_multi_head_attention(rng, width, num_heads=heads, bias=False)
        if form != "softmax":
            start = init_scalable_softmax(rng, num_heads=heads, max_positions=trained)
            attention = attention._replace(core=start._replace(offset=np.zeros(heads, np.float32) if FORMS[form][1] else None))

        def draw(rng):
            tokens, _, answers = sequences(rng, 8, trained, back_only)
            return tokens, answers

        task = Labelled(partial(finder, core=core_of(form, back_only)), draw)
        return fit(Finder(attention, init_linear(rng, width, values)), task, steps=steps, peak=1e-2, rng=rng, weight_decay=0.1, progress=bar(form))

    def test(params, form, back_only, tokens, asked, answers):
        """Of the last questions of each sequence: the share that is answered rightly, the mean weight on the key asked for, and
        the share in which no key is heavier; the weights are those of the head that looks at it most.
        """
        n, weights = tokens.shape[1], None

        def last_queries(learned, q, k, v, bias, *, mask):
            """The core for the few questions that are judged; its weights are what it makes of the identity."""
            nonlocal weights
            weights, _ = core_of(form, back_only)(learned, q[..., -last:, :], k, np.eye(n, dtype=k.dtype))
            return weights @ v, None

        logits, _ = finder(params, tokens, core=last_queries)
        right = logits.argmax(-1) == answers[:, -last:]
        on_key = np.take_along_axis(weights, asked[:, None, -last:, None], axis=-1)[..., 0]  # (sequences, heads, questions)
        heads_weight = on_key.mean((0, 2))
        looking = heads_weight.argmax()                      # some models leave the other head idle
        heaviest = weights[:, looking].argmax(-1) == asked[:, -last:]
        return float(right.mean()), float(heads_weight[looking]), float(heaviest.mean())

    runs = {name: (name, True) for name in FORMS} | {f"{name}, n = {trained}": (name, False) for name in ("softmax", "SSMax")}
    models = {name: [learner(*run, seed) for seed in range(seeds)] for name, run in runs.items()}
    found = {name: np.zeros((3, seeds, len(lengths))) for name in runs}
    for back_only in (True, False):
        rng = np.random.default_rng([chapter.seed, 1000])
        for row, n in enumerate(lengths):
            made = sequences(rng, tests, n, back_only)
            for name, run in runs.items():
                if run[1] == back_only:
                    found[name][:, :, row] = np.transpose([test(params, *run, *made) for params in models[name]])
    with chapter.figure("retrieval", size=(6.8, 3), ncols=2, sharey=True) as (_, axes):
        for measure, ax, title in ((0, axes[0], "questions answered rightly"), (1, axes[1], "weight on the key asked for")):
            for colour, name in enumerate(FORMS):
                of_seeds = found[name][measure]
                ax.semilogx(lengths, of_seeds.mean(0), "o--" if "offset" in name else "o-", color=f"C{colour}", label=name)
                ax.fill_between(lengths, of_seeds.min(0), of_seeds.max(0), color=f"C{colour}", alpha=0.15, linewidth=0)
            ax.set(xlabel=f"length in testing (trained at {trained})", title=title, ylim=(0, 1.05), xticks=lengths, xticklabels=lengths)
            ax.minorticks_off()
        axes[0].axhline(1 / values, linestyle=":", color="#808080")
        axes[0].text(lengths[0], 1 / values + 0.02, "guessing")
        axes[1].legend(loc="lower left")
    for measure, table, digits, unit in ((0, "retrieval", 1, 100), (1, "retrieval_weight", 2, 1), (2, "retrieval_heaviest", 1, 100)):
        means, spreads = ({name: unit * of(values_of[measure], 0) for name, values_of in found.items()} for of in (np.mean, np.std))
        chapter.table(
            table,
            [("% answered rightly, tokens:", "weight on the key, tokens:", "% with no key heavier, tokens:")[measure], *map(str, lengths)],
            [[name, *(f"{m:.{digits}f}\u00a0±\u00a0{s:.{digits}f}" for m, s in zip(means[name], spreads[name], strict=True))] for name in runs],
        )
    first, longest = lengths[0], lengths[-1]
    for name, key in zip(runs, ("softmax", "ssmax", "offset", "softmax_fixed", "ssmax_fixed"), strict=True):
        for n, right, weight, heaviest in zip(lengths, *found[name].mean(1), strict=True):
            chapter.value(f"retrieval.{key}.right.n{n}", 100 * float(right))
            chapter.value(f"retrieval.{key}.weight.n{n}", float(weight))
            chapter.value(f"retrieval.{key}.heaviest.n{n}", 100 * float(heaviest))
        learned = [params.attention.core for params in models[name]]
        for what in ("scale", "offset"):
            if getattr(learned[0], what, None) is not None:
                chapter.value(f"retrieval.{key}.learned.{what}", float(np.mean([getattr(own, what) for own in learned])))
    for name, number in (("trained", trained), ("longest", longest), ("last", last), ("steps", steps), ("seeds", seeds)):
        chapter.value(f"retrieval.{name}", number)

    (soft, soft_weight, _), (scaled, scaled_weight, _), (moved, moved_weight, _) = (found[name] for name in FORMS)
    wins = int((scaled[:, -1] > soft[:, -1] + 0.2).sum())
    chapter.claim(
        "SSMax finds a key at 16 times the length of training, where a softmax no longer does",
        paper="Nakanishi 2025, arXiv:2501.19399: models with SSMax retrieve keys far beyond the training length, those with a softmax do not",
        expect=f"trained at {first} tokens alone, asked at {longest}: SSMax at least 20 points ahead in every seed, both above 95 % at {first}",
        measured=f"softmax {100 * soft[:, 0].mean():.1f} % at {first} and {100 * soft[:, -1].mean():.1f} % at {longest}, SSMax "
        f"{100 * scaled[:, 0].mean():.1f} and {100 * scaled[:, -1].mean():.1f} %; 20 points ahead in {wins} of {seeds} seeds",
        holds=wins == seeds and min(soft[:, 0].mean(), scaled[:, 0].mean()) > 0.95,
        toy_scale="what a faded key loses goes to all values alike, and the largest answer stays the same; both fail where another key is "
        "heavier, and a factor on the scores does not change which one is",
        full_only=True,
    )
    chapter.claim(
        "SSMax keeps its weight on the key at 16 times the length of training",
        paper="Nakanishi 2025, arXiv:2501.19399, section 1 and figure 1: a softmax's attention fades as the context grows, SSMax's does not",
        expect=f"at {longest} tokens the weight on the key in every seed of SSMax above that in every seed of the softmax, and less of it lost",
        measured=f"from {first} to {longest} tokens: softmax {soft_weight[:, 0].mean():.2f} to {soft_weight[:, -1].mean():.2f} "
        f"(seeds {soft_weight[:, -1].min():.2f} to {soft_weight[:, -1].max():.2f}), SSMax {scaled_weight[:, 0].mean():.2f} to "
        f"{scaled_weight[:, -1].mean():.2f} ({scaled_weight[:, -1].min():.2f} to {scaled_weight[:, -1].max():.2f})",
        holds=scaled_weight[:, -1].min() > soft_weight[:, -1].max()
        and (scaled_weight[:, 0] - scaled_weight[:, -1]).max() < (soft_weight[:, 0] - soft_weight[:, -1]).min(),
        full_only=True,
    )
    chapter.claim(
        "An offset makes SSMax worse at lengths beyond training",
        paper="Nakanishi 2025, arXiv:2501.19399: with the offset the loss in training is slightly lower, and retrieval in long contexts is worse",
        expect=f"less weight on the key at {longest} tokens than without it, in every seed",
        measured=f"{moved_weight[:, -1].mean():.3f} against {scaled_weight[:, -1].mean():.3f}, less in "
        f"{int((moved_weight[:, -1] < scaled_weight[:, -1]).sum())} of {seeds} seeds; {100 * moved[:, -1].mean():.1f} against "
        f"{100 * scaled[:, -1].mean():.1f} % answered rightly",
        holds=bool(np.all(moved_weight[:, -1] < scaled_weight[:, -1])),
        toy_scale="n from 1 to 64 tells scale and offset apart well enough: the offset stays small beside the scale times log n",
        full_only=True,
    )


retrieval_section()

# %%
chapter.finish()
