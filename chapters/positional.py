"""Positions: ways to tell a Transformer where its tokens stand.

A wave added to the input, a learned row added to the input, a turn of queries and keys, a bias on their scores. What each
knows about distance, what float32 does to far positions, and what happens to a model that is trained on short texts and
meets long ones.
"""

# %%
import dataclasses
import time
from functools import partial
from typing import NamedTuple

import numpy as np

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.reporting.chapter import Chapter
from minitransformers.foundation import trees
from minitransformers.models.language_model import LanguageModelConfig, init_language_model, language_model
from minitransformers.models.transformer_block import TransformerBlock, transformer_block
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm
from minitransformers.positional.hierarchical import Hierarchical, hierarchical, init_hierarchical, places_of
from minitransformers.positional.learned import Learned, init_learned, learned
from minitransformers.positional.rope import rope
from minitransformers.positional.sinusoidal import sinusoidal
from minitransformers.training.fit import fit
from minitransformers.training.text import Corpus

chapter = Chapter("positional", __doc__)


# %% Sinusoidal: two positions meet in a number that knows their distance alone
def sinusoidal_section():
    length, width = 512, 64
    table, _ = sinusoidal(np.zeros((length, width)))
    products = table @ table.T
    offsets = (1, 4, 16, 64, 256)
    spread = max(float(np.ptp(np.diagonal(products, k))) for k in offsets)
    lengths = np.linalg.norm(table, axis=-1)
    with chapter.figure("sinusoidal_table", size=(6, 2.8)) as (fig, ax):
        image = ax.imshow(table[:100].T, aspect="auto", cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
        ax.set(xlabel="position", ylabel="feature")
        ax.grid(False)
        fig.colorbar(image)
    chapter.value("sinusoidal.spread", spread)
    chapter.value("sinusoidal.length", lengths[0])
    chapter.claim(
        "Sinusoids know distance",
        paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.5: position p + k is a linear function of position p, for any fixed k",
        expect="the dot product of two rows is the same wherever the pair stands: it differs by float64 rounding alone",
        measured=f"it differs by at most {spread:.0e} over {length} positions, for distances of 1 to 256; every row is {lengths[0]:.3g} long",
        holds=spread < 1e-11 and float(np.ptp(lengths)) < 1e-12,
    )


sinusoidal_section()


# %% RoPE: the score of a query and a key, moved along the text together
def relative_section():
    rng, width, far = chapter.rng(), 64, 1000
    query, key = rng.normal(size=(2, width))
    places, offsets = np.arange(0, far, 10), (0, 1, 10, 100)
    table = init_learned(rng, width, max_positions=far + 101, std=1.0, dtype=np.float64)
    schemes = {
        "RoPE": lambda x, p: rope(x, positions=p)[0],
        "sinusoidal": lambda x, p: sinusoidal(x, positions=p)[0],
        "learned": lambda x, p: learned(table, x, positions=p)[0],
    }
    scores = {
        name: {k: np.vecdot(put(np.tile(query, (len(places), 1)), places + k), put(np.tile(key, (len(places), 1)), places)) for k in offsets}
        for name, put in schemes.items()
    }
    spread = {name: [float(np.ptp(found[k])) for k in offsets] for name, found in scores.items()}
    chapter.table(
        "relative",
        ["spread of the score over places, at distance", *map(str, offsets)],
        [[name, *(0.0 if s < 1e-11 else s for s in found)] for name, found in spread.items()],
    )
    with chapter.figure("relative", size=(6.5, 3), ncols=2, sharey=True) as (_, axes):
        for ax, name in zip(axes, ("RoPE", "sinusoidal"), strict=True):
            for k in offsets:
                ax.plot(places, scores[name][k], label=f"distance {k}")
            ax.set(title=name, xlabel="position of the key")
        axes[0].set_ylabel("score of one query and one key")
        axes[0].legend(loc="upper left")
    chapter.value("rope.spread", max(spread["RoPE"]))
    chapter.value("rope.spread_sinusoidal", max(spread["sinusoidal"]))
    chapter.claim(
        "RoPE's scores depend on the distance alone",
        paper="Su et al. 2021, arXiv:2104.09864, eq. 16: the inner product is a function of q, k and the relative position",
        expect="the same score wherever the pair stands, to float64 rounding; rows added to q and k do not have this",
        measured=f"scores differ by {max(spread['RoPE']):.0e} over {far} places; by {max(spread['sinusoidal']):.1f} with sinusoids "
        f"added, by {max(spread['learned']):.0f} with random rows added",
        holds=max(spread["RoPE"]) < 1e-10 and min(max(spread["sinusoidal"]), max(spread["learned"])) > 1,
    )


relative_section()


# %% How a score fades with distance: an envelope, not a law
def decay_section():
    width = 64
    distances = np.arange(2049)
    ones = np.ones((len(distances), width)) / width**0.5
    mean_cosine = rope(ones, positions=distances)[0] @ ones[0]
    long_base = rope(ones, positions=distances, base=500_000.0)[0] @ ones[0]
    shown = [0, 1, 4, 16, 64, 256, 1024]
    chapter.table(
        "decay",
        ["distance", "base 10,000", "base 500,000"],
        [[k, float(mean_cosine[k]), float(long_base[k])] for k in shown],
    )
    with chapter.figure("decay") as (_, ax):
        ax.plot(distances[1:], long_base[1:], linewidth=1, color="#d0691f", label="base 500,000 (Llama 3)")
        ax.plot(distances[1:], mean_cosine[1:], linewidth=1, color="#2f7ebf", label="base 10,000")
        ax.set(xlabel="distance", ylabel="mean cosine over the pairs", ylim=(0, 1.05), xscale="log")
        ax.set_xticks(shown[1:], [f"{k:,}" for k in shown[1:]])
        ax.minorticks_off()
        ax.legend()
    rises = float((np.diff(mean_cosine) > 0).mean())
    chapter.value("rope.rises", rises)
    chapter.claim(
        "RoPE's scores fade with distance",
        paper="Su et al. 2021, arXiv:2104.09864, section 3.3: the inner product decays as the relative distance grows",
        expect="for equal q and k the mean of cos(distance · frequency): 1, .966, .748, .605, .435, .354, .263 at 0, 1, 4, 16, 64, 256, "
        "1024; falling over each factor of four, not at every step",
        measured=f"{', '.join(f'{mean_cosine[k]:.3f}' for k in shown)}; from one distance to the next it rises in {rises:.0%} of all cases",
        holds=bool((np.diff(mean_cosine[shown]) < 0).all()) and abs(mean_cosine[1024] - 0.263) < 1e-3,
    )


decay_section()


# %% One idea, two layouts
def layout_section():
    rng, width = chapter.rng(), 32
    x = rng.normal(size=(4, 128, width))
    order = np.concatenate([np.arange(0, width, 2), np.arange(1, width, 2)])
    half, interleaved = rope(x[..., order])[0], rope(x, layout="interleaved")[0]
    same = float(np.abs(half - interleaved[..., order]).max())
    forgotten = float(np.abs(rope(x)[0] - interleaved).max())
    chapter.value("layout.same", same)
    chapter.value("layout.forgotten", forgotten)

    x, dout = rng.standard_normal((2, 8, 512, 64), np.float32)

    angle = np.outer(np.arange(512), 10_000.0 ** (-np.arange(32) / 32))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def by_slices():
        for a, s in ((x, sin), (dout, -sin)):
            out = np.empty_like(a)
            out[..., ::2] = a[..., ::2] * cos - a[..., 1::2] * s
            out[..., 1::2] = a[..., ::2] * s + a[..., 1::2] * cos

    forms = {
        "every second feature, four products": by_slices,
        "half": lambda: rope(x)[1](dout),
        "interleaved, as complex numbers": lambda: rope(x, layout="interleaved")[1](dout),
    }
    rounds = []
    for _ in range(5 if chapter.quick else 150):
        marks = [time.perf_counter()]
        for form in forms.values():
            form()
            marks.append(time.perf_counter())
        rounds.append(np.diff(marks))
    times = np.min(rounds, axis=0)                                                    # the rounds in which nothing else ran
    chapter.table("layout_cost", ["form", "time, forward and backward"], [[n, float(t / times[0])] for n, t in zip(forms, times, strict=True)])
    chapter.value("layout.half_time", times[1] / times[0])
    chapter.value("layout.interleaved_time", times[2] / times[0])
    chapter.claim(
        "The two layouts of RoPE are one permutation apart",
        paper="Su et al. 2021, arXiv:2104.09864, eq. 34 pairs neighbours; GPT-NeoX and Hugging Face's Llama pair feature m with m + d/2",
        expect="equal to rounding after [0, 2, 4, …, 1, 3, 5, …], and quite different without: weights must be permuted on loading",
        measured=f"{same:.0e} apart with the permutation, {forgotten:.1f} without",
        holds=same < 1e-12 and forgotten > 1,
    )


layout_section()


# %% Far positions: angles want float64
def angle_section():
    positions = 10 ** np.arange(1, 7)
    frequency = 10_000.0 ** (-np.arange(32) / 32)
    exact = np.outer(positions, frequency)
    single = np.outer(positions.astype(np.float32), frequency.astype(np.float32))
    error = np.abs(np.sin(single) - np.sin(exact)).max(axis=1)
    ours = np.abs(sinusoidal(np.zeros((6, 64), np.float32), positions=positions)[0][:, ::2] - np.sin(exact)).max(axis=1)
    chapter.table(
        "angles",
        ["position", "error with float32 angles", "error with float64 angles, cast last"],
        [[int(p), float(e), float(o)] for p, e, o in zip(positions, error, ours, strict=True)],
    )
    chapter.value("angles.single", float(error[4]))
    chapter.value("angles.ours", float(ours[4]))
    chapter.claim(
        "Angles in float64, cast last, keep far positions exact",
        paper="not in a paper: a float32 holds 7 digits, and a far angle spends them on whole turns",
        expect="errors that grow with the position in float32; none above float32 rounding when the cast comes last",
        measured=f"at position 100,000: {error[4]:.0e} and {ours[4]:.0e}",
        holds=bool(error[4] > 1e-4 and ours.max() < 1e-7),
    )


angle_section()


# %% Train short, test long
def noisy_counting(rng, batch_size, length, symbols=8, noise=0.2):
    """Each token is the one before last plus one, modulo 8; one in five is drawn at random. (batch, length + 1)"""
    tokens = rng.integers(symbols, size=(batch_size, length + 1))
    random = rng.random(tokens.shape) < noise
    for t in range(2, length + 1):
        tokens[:, t] = np.where(random[:, t], tokens[:, t], (tokens[:, t - 2] + 1) % symbols)
    return tokens


def loss_at(params, config, tokens, *, last=None):
    """Mean loss in nats, of the last few positions only where ``last`` is given; and the gradient when asked."""
    ids, targets = tokens[:, :-1], tokens[:, 1:].copy()
    if last is not None:
        targets[:, :-last] = -100
    logits, backward = language_model(params, ids=ids, config=config)
    loss, loss_backward = cross_entropy(logits, targets=targets)
    return float(loss), lambda: backward(loss_backward(np.ones_like(loss)))


def train(config, draw, *, steps, rate=5e-3):
    """The parameters after some steps on batches that ``draw(rng)`` makes."""
    rng = chapter.rng()

    def loss(params):
        value, backward = loss_at(params, config, draw(rng))
        return value, backward()

    return fit(
        init_language_model(rng, config, std=0.2), loss,
        steps=steps, peak=rate, warmup=min(1, 20 / steps), floor=0.1, progress=partial(chapter.progress, text=config.position),
    )  # fmt: skip


def at_length(params, config, draw, length, **options):
    """The loss at another length, or None where the table of positions ends before it."""
    longer = dataclasses.replace(config, context=max(length, config.context))
    try:
        return loss_at(params, longer, draw(np.random.default_rng([chapter.seed, length])), **options)[0]
    except ValueError as error:
        assert str(error).startswith(("positions", "num_keys"))
        return None


SCHEMES = {                                                  # what tables and figures call it: its name and options
    "none": ("none", {}),
    "sinusoidal": ("sinusoidal", {}),
    "learned": ("learned", {}),
    "rope": ("rope", {}),
    "alibi": ("alibi", {"learned": False}),                  # the paper's slopes are constants
    "t5_bias": ("t5_bias", {}),                              # the last bucket begins near 128
    "t5_bias to 32": ("t5_bias", {"max_distance": 32}),      # all buckets occur in training
    "toeplitz": ("toeplitz", {}),
}


def extrapolation_section():
    trained, lengths = 32, (32, 64, 128, 256)
    steps = 20 if chapter.quick else 400
    found = {}
    for scheme, (position, options) in SCHEMES.items():
        config = LanguageModelConfig(
            8, context=trained, d_model=32, num_layers=1, num_heads=4, position=position, tied=False,
            options={"channel": {"d_hidden": 64}, "position": options},
        )  # fmt: skip
        params = train(config, lambda rng: noisy_counting(rng, 32, trained), steps=steps)
        found[scheme] = [at_length(params, config, lambda rng, n=n: noisy_counting(rng, 32, n), n, last=16) for n in lengths]
    floor = -(0.825 * np.log(0.825) + 7 * 0.025 * np.log(0.025))                      # 0.8 + 0.2/8, and seven times 0.2/8
    chapter.table("train_short_test_long", ["position", *(f"length {n}" for n in lengths)], [[name, *row] for name, row in found.items()])
    with chapter.figure("train_short_test_long") as (_, ax):
        for scheme, losses in found.items():
            ends = [n for n, loss in zip(lengths, losses, strict=True) if loss is not None]
            marker = "*" if len(ends) == 1 else "o"
            ax.plot(ends, [loss for loss in losses if loss is not None], f"{marker}-", markersize=9 if marker == "*" else 4.5, label=scheme)
        for height, word in ((floor, "the noise itself"), (np.log(8), "guessing")):
            ax.axhline(height, linestyle=":", color="#808080")
            ax.text(lengths[-1], height + 0.03, word, ha="right")
        ax.set(xlabel="length in testing (trained at 32)", ylabel="nats, last 16 tokens", xscale="log")
        ax.set_xticks(lengths, [str(n) for n in lengths])
        ax.minorticks_off()
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    for scheme, losses in found.items():
        name = scheme.replace(" ", "_")
        chapter.value(f"extrapolation.{name}", losses[0])
        if losses[2] is not None:
            chapter.value(f"extrapolation.{name}_128", losses[2])
            chapter.value(f"extrapolation.{name}_256", losses[3])
    chapter.value("extrapolation.floor", floor)
    knows = [found[scheme][0] for scheme in ("sinusoidal", "learned", "rope")]
    chapter.claim(
        "Without positions one layer cannot count back",
        paper="Vaswani et al. 2017, arXiv:1706.03762, section 3.5: without recurrence or convolution, order must be put in",
        expect=f"with positions near the floor of {floor:.2f} nats; without, at least half a nat above it",
        measured=f"{', '.join(f'{loss:.2f}' for loss in knows)} nats with sinusoidal, learned and RoPE; {found['none'][0]:.2f} with none",
        holds=max(knows) < floor + 0.2 and found["none"][0] > floor + 0.5,
        full_only=True,
    )
    chapter.claim(
        "Trained short, tested long, sinusoidal, learned and RoPE fail",
        paper="Press et al. 2021, arXiv:2108.12409, section 2: sinusoidal and rotary models do not extrapolate; a learned table has no further rows",
        expect="at four times the length sinusoidal and plain RoPE lose more than half a nat; learned cannot run at all",
        measured=f"from {found['sinusoidal'][0]:.2f} to {found['sinusoidal'][2] or 0:.2f} nats sinusoidal, from {found['rope'][0]:.2f} to "
        f"{found['rope'][2] or 0:.2f} RoPE; learned raises a ValueError",
        holds=all(found[s][2] > found[s][0] + 0.5 for s in ("sinusoidal", "rope")) and found["learned"][1] is None,
        full_only=True,
    )
    line = found["alibi"]
    chapter.claim(
        "Trained short, tested long, ALiBi holds",
        paper="Press et al. 2021, arXiv:2108.12409, section 4: trained at one length, as good or better at several times that length",
        expect="fixed slopes: at two, four and eight times the length within 0.15 nats of the loss at the trained length",
        measured=f"{', '.join(f'{loss:.2f}' for loss in line)} nats at lengths {', '.join(map(str, lengths))}",
        holds=max(line) < line[0] + 0.15,
        full_only=True,
    )
    near, far = found["t5_bias to 32"], found["t5_bias"]
    chapter.claim(
        "T5's bias stands between",
        paper="Press et al. 2021, arXiv:2108.12409, section 2.2: the T5 bias extrapolates better than sinusoidal and rotary positions; section 4: "
        "ALiBi does better still",
        expect="better than RoPE by half a nat at twice and four times the length, if all buckets occur in training; at four times worse than ALiBi",
        measured=f"{near[1]:.2f} and {near[2]:.2f} nats ({far[1]:.2f} and {far[2]:.2f} with buckets that training never fills); ALiBi "
        f"{line[1]:.2f} and {line[2]:.2f}, RoPE {found['rope'][1] or 0:.2f} and {found['rope'][2] or 0:.2f}",
        holds=line[2] < near[2] and all(near[i] < found["rope"][i] - 0.5 for i in (1, 2)),
        full_only=True,
    )


extrapolation_section()


# %% The same on real text, where most of what matters stands near
def text_section():
    trained, lengths, steps = 32, (32, 128), 10 if chapter.quick else 150
    corpus = Corpus.load(context=trained)

    def draw(rng):
        inputs, targets = corpus.batch(rng, batch_size=16, context=trained)
        return np.concatenate([inputs, targets[:, -1:]], axis=1)

    found = {}
    for scheme, (position, options) in SCHEMES.items():
        config = LanguageModelConfig(
            corpus.vocabulary.size, context=trained, d_model=48, num_layers=2, num_heads=4, position=position, tied=False,
            options={"position": options},
        )  # fmt: skip
        params = train(config, draw, steps=steps)
        windows = {
            n: next(corpus.evaluation_batches(batch_size=4096 // n, context=n, limit=4096 // n)) for n in lengths
        }
        tokens = {n: np.concatenate([inputs, targets[:, -1:]], axis=1) for n, (inputs, targets) in windows.items()}
        found[scheme] = [at_length(params, config, lambda rng, n=n: tokens[n], n) for n in lengths]
    chapter.table("text", ["position", *(f"nats a character at length {n}" for n in lengths)], [[s, *row] for s, row in found.items()])
    for scheme, losses in found.items():
        name = scheme.replace(" ", "_")
        chapter.value(f"text.{name}", losses[0])
        if losses[1] is not None:
            chapter.value(f"text.{name}_128", losses[1])
    sine, table, turn, none = (found[s][0] for s in ("sinusoidal", "learned", "rope", "none"))
    chapter.claim(
        "Sinusoidal and learned positions do equally well",
        paper="Vaswani et al. 2017, arXiv:1706.03762, table 3 row E: nearly identical results",
        expect="real text, a small model, the trained length: within 0.1 nats of each other, one seed",
        measured=f"{sine:.2f} and {table:.2f} nats a character ({turn:.2f} with RoPE, {none:.2f} with none)",
        holds=abs(sine - table) < 0.1,
        full_only=True,
    )


text_section()


# %% Real text, trained at 128 and read in longer and longer windows
def long_text_section():
    trained, lengths, steps = 128, (128, 256, 512, 1024), 3 if chapter.quick else 150
    corpus = Corpus.load(context=trained)
    ids = corpus.validation[: (2048 if chapter.quick else 16384) + 1]

    def draw(rng):
        inputs, targets = corpus.batch(rng, batch_size=6, context=trained)
        return np.concatenate([inputs, targets[:, -1:]], axis=1)

    def bits(params, config, length):
        """Bits a character of the same characters, cut into windows of this length; None where a table has no such position."""
        windows = np.lib.stride_tricks.sliding_window_view(ids, length + 1)[::length]
        parts = np.split(windows, len(windows) * length // 2048)
        losses = [at_length(params, config, lambda rng, part=part: part, length) for part in parts]
        return None if None in losses else float(np.mean(losses) / np.log(2))

    found = {}
    for scheme, (position, options) in SCHEMES.items():
        if scheme == "t5_bias to 32":                        # at this length all of T5's buckets occur in training anyway
            continue
        config = LanguageModelConfig(
            corpus.vocabulary.size, context=trained, d_model=48, num_layers=2, num_heads=4, position=position, tied=False,
            options={"position": options},
        )  # fmt: skip
        params = train(config, draw, steps=steps)
        found[scheme] = [bits(params, config, n) for n in lengths]
    chapter.table("long_text", ["bits a character", *(f"length {n}" for n in lengths)], [[name, *row] for name, row in found.items()])
    with chapter.figure("long_text") as (_, ax):
        for scheme, losses in found.items():
            ends = [n for n, loss in zip(lengths, losses, strict=True) if loss is not None]
            marker = "*" if len(ends) == 1 else "o"
            ax.plot(ends, losses[: len(ends)], f"{marker}-", markersize=9 if marker == "*" else 4.5, label=scheme)
        ax.set(xlabel=f"length in testing (trained at {trained})", ylabel="bits a character", xscale="log")
        ax.set_xticks(lengths, [str(n) for n in lengths])
        ax.minorticks_off()
        ax.legend(ncols=2)
    chapter.value("long_text.trained", trained)
    chapter.value("long_text.steps", steps)
    chapter.value("long_text.longest", lengths[-1])
    more = {name: losses[-1] - losses[0] for name, losses in found.items() if losses[-1] is not None}
    for name, change in more.items():
        chapter.value(f"long_text.more.{name.replace(' ', '_')}", change)
    chapter.claim(
        "On real text ALiBi holds at lengths it was not trained for",
        paper="Press et al. 2021, arXiv:2108.12409, abstract: trained at 1024 and tested at 2048, as good as sinusoids trained at 2048",
        expect=f"the same text in windows of {lengths[-1]} costs no more bits a character than in windows of {trained} (0.02 allowed)",
        measured=f"{found['alibi'][0]:.3f} bits a character in windows of {trained}, {found['alibi'][-1]:.3f} of {lengths[-1]}",
        holds=more["alibi"] < 0.02,
        full_only=True,
    )
    chapter.claim(
        "On real text sinusoids get worse, and a table ends",
        paper="Press et al. 2021, arXiv:2108.12409, section 2.2: sinusoidal models get worse soon after the trained length",
        expect=f"sinusoidal at least 0.2 bits a character worse in windows of {lengths[-1]}; learned and Toeplitz refuse {lengths[1]}",
        measured=f"sinusoidal {found['sinusoidal'][0]:.2f} and {found['sinusoidal'][-1]:.2f}; learned and Toeplitz raise a ValueError",
        holds=more["sinusoidal"] > 0.2 and found["learned"][1] is None and found["toeplitz"][1] is None,
        full_only=True,
    )
    chapter.claim(
        "On real text RoPE extrapolates worse than the biases",
        paper="Press et al. 2021, arXiv:2108.12409, section 2.2 and figure 1: rotary positions worse than T5's bias, T5's bias worse than ALiBi",
        expect=f"more bits a character added by RoPE, between windows of {trained} and of {lengths[-1]}, than by T5's bias or by ALiBi",
        measured=f"RoPE {more['rope']:+.3f}, T5's bias {more['t5_bias']:+.3f}, ALiBi {more['alibi']:+.3f}; with no positions {more['none']:+.3f}",
        holds=more["rope"] > max(more["t5_bias"], more["alibi"]),
        full_only=True,
    )
    chapter.claim(
        "On real text ALiBi extrapolates better than T5's bias",
        paper="Press et al. 2021, arXiv:2108.12409, section 2.2 and figure 1: T5's bias worse than ALiBi",
        expect="fewer bits a character added by ALiBi",
        measured=f"ALiBi {more['alibi']:+.3f} to {found['alibi'][-1]:.2f}, T5's bias {more['t5_bias']:+.3f} to {found['t5_bias'][-1]:.2f}",
        holds=more["alibi"] < more["t5_bias"],
        toy_scale="neither gets worse at all in so small a model of characters, and one seed does not tell differences this small apart",
        full_only=True,
    )


long_text_section()


# %% Documents: the place in the structure, or the number of the token
class Reader(NamedTuple):
    """Words, their positions, one block, and the mean over the document to an answer."""

    words: Embedding
    positions: Hierarchical | Learned
    block: TransformerBlock
    norm: LayerNorm
    head: Linear


def documents(rng, size, *, paragraphs=3, sentences=3, longest=6, words=10, asked=(1, 2)):
    """Does sentence 2 of paragraph 1, both counted from 0, contain the word 0?

    Sentences have 3 to ``longest`` tokens. The last is a full stop, or the end of a paragraph. Every sentence contains the
    word, once, with probability one half. Returns tokens (size, length), which of them are no padding, the tokens' places in
    the structure (size, levels, length), and the answers.
    """
    lengths = rng.integers(3, longest + 1, size=(size, paragraphs * sentences))
    ends = lengths.cumsum(axis=1)
    places = np.arange(ends.max())
    real = places < ends[:, -1:]
    sentence = np.minimum((places[:, None] >= ends[:, None]).sum(-1), paragraphs * sentences - 1)
    tokens = np.where(real, rng.integers(1, words, size=real.shape), words + 2)
    contains = rng.random(lengths.shape) < 0.5
    at = (ends - lengths + rng.integers(lengths - 1))[contains]
    tokens[np.nonzero(contains)[0], at] = 0
    stops = np.where(np.arange(1, paragraphs * sentences + 1) % sentences == 0, words + 1, words)
    np.put_along_axis(tokens, ends - 1, stops[None], axis=1)
    first = np.diff(sentence, prepend=-1, axis=1) > 0
    begins = np.stack([first & (sentence % sentences == 0), first], axis=1)
    return tokens, real, places_of(begins) * real[:, None], contains[:, asked[0] * sentences + asked[1]].astype(int)


def reader(params, tokens, real, places):
    x, words_backward = embedding(params.words, ids=tokens)
    if isinstance(params.positions, Learned):
        x, positions_backward = learned(params.positions, x)
    else:
        x, positions_backward = hierarchical(params.positions, x, ids=places)
    mixer = partial(multi_head_attention, num_heads=2, causal=False, mask=real[:, None, None])
    x, block_backward = transformer_block(params.block, x, mixer=mixer, channel=feed_forward, norm=layer_norm)
    x, norm_backward = layer_norm(params.norm, x)
    share = (real / real.sum(axis=1, keepdims=True)).astype(x.dtype)[:, None]         # (size, 1, length)
    logits, head_backward = linear(params.head, (share @ x)[:, 0])

    def backward(dlogits):
        dhead, dmean = head_backward(dlogits)
        dnorm, dx = norm_backward(share.swapaxes(-1, -2) * dmean[:, None])
        dblock, dx, _ = block_backward(dx)
        dpositions, dx = positions_backward(dx)
        return Reader(words_backward(dx), dpositions, dblock, dnorm, dhead)

    return logits, backward


def document_section():
    width, longest, hidden, words = 32, 6, 64, 13
    steps, every, seeds = (20, 10, 1) if chapter.quick else (160, 20, 3)
    test = documents(np.random.default_rng([chapter.seed, 1000]), 64 if chapter.quick else 256)
    levels = [3, 3, longest]                                 # paragraphs, sentences in each, words in each
    rows = {"levels": sum(levels), "flat": 9 * longest}
    wider = width * (rows["flat"] - rows["levels"]) // (2 * width + 1)                 # hidden units that the saved rows pay for

    def fresh(rng, scheme):
        positions, d_hidden = init_learned(rng, width, max_positions=rows["flat"], std=0.5), hidden
        if scheme == "levels":
            positions, d_hidden = init_hierarchical(rng, width, places=levels, std=0.5), hidden + wider
        block = TransformerBlock(
            init_layer_norm(rng, width), init_multi_head_attention(rng, width, num_heads=2),
            init_layer_norm(rng, width), init_feed_forward(rng, width, d_hidden=d_hidden),
        )  # fmt: skip
        return Reader(init_embedding(rng, words, width, std=0.5), positions, block, init_layer_norm(rng, width), init_linear(rng, width, 2))

    def curve(scheme, seed):
        """The share of new documents that is answered rightly, every few steps, and the number of parameters."""
        rng = np.random.default_rng([chapter.seed, seed])
        params, right = fresh(rng, scheme), []

        def loss(params):
            *document, answers = documents(rng, 32)
            logits, backward = reader(params, *document)
            value, loss_backward = cross_entropy(logits, targets=answers)
            return float(value), backward(loss_backward(np.ones_like(value)))

        def watch(step, _, params):
            if step % every == 0:
                right.append(float((reader(params, *test[:3])[0].argmax(-1) == test[3]).mean()))

        progress = partial(chapter.progress, text=f"documents, {scheme}")
        fit(params, loss, steps=steps, peak=5e-3, warmup=min(1, 10 / steps), floor=0.1, watch=watch, progress=progress)
        return right, trees.count_parameters(params)

    curves, sizes = {}, {}
    for scheme in rows:
        found = [curve(scheme, seed) for seed in range(seeds)]
        curves[scheme], sizes[scheme] = np.array([right for right, _ in found]), found[0][1]
    marks = np.arange(every, steps + 1, every)
    with chapter.figure("documents") as (_, ax):
        for colour, (scheme, label) in enumerate((("levels", "paragraph, sentence, word"), ("flat", "flat learned table"))):
            ax.plot(marks, curves[scheme].mean(0), "o-", color=f"C{colour}", label=label)
            ax.fill_between(marks, curves[scheme].min(0), curves[scheme].max(0), color=f"C{colour}", alpha=0.15, linewidth=0)
        ax.axhline(0.5, linestyle=":", color="#808080")
        ax.text(marks[-1], 0.51, "guessing", ha="right")
        ax.set(xlabel="step", ylabel="new documents answered rightly", ylim=(0.45, 1.02))
        ax.legend(loc="lower right", bbox_to_anchor=(1, 0.13))
    arrived = {scheme: [int(marks[right > 0.95][0]) if (right > 0.95).any() else None for right in found] for scheme, found in curves.items()}
    chapter.table(
        "documents",
        ["% right, step:", *map(str, marks[1::2]), "seeds, ±", "parameters"],
        [[name, *(100 * curves[scheme].mean(0))[1::2], 100 * float(curves[scheme][:, -1].std()), sizes[scheme]]
         for scheme, name in (("levels", "paragraph, sentence, word"), ("flat", "flat learned table"))],
    )  # fmt: skip
    last = {scheme: 100 * curves[scheme][:, -1] for scheme in rows}
    for scheme in rows:
        chapter.value(f"documents.{scheme}.rows", rows[scheme])
        chapter.value(f"documents.{scheme}.right", float(last[scheme].mean()))
    for name, number in (("steps", steps), ("seeds", seeds), ("wider", wider)):
        chapter.value(f"documents.{name}", number)
    chapter.value("documents.arrived", ", ".join("never" if step is None else str(step) for step in arrived["levels"]))
    chapter.claim(
        "Levels find a sentence sooner than flat positions",
        paper="no one paper: BERT adds the number of the sentence, HiBERT counts in sentences and in documents, and neither measures it alone",
        expect="is a word in sentence 2 of paragraph 1? With equal parameters: levels above 95 % in every seed, before any flat table is",
        measured=f"levels above 95 % after {', '.join(map(str, arrived['levels']))} steps; flat tables after {steps} steps at "
        f"{last['flat'].min():.0f} to {last['flat'].max():.0f} %",
        holds=None not in arrived["levels"] and all(step is None or step > max(arrived["levels"]) for step in arrived["flat"])
        and abs(sizes["flat"] - sizes["levels"]) < 0.01 * sizes["flat"],
        full_only=True,
    )  # fmt: skip


document_section()


# %%
if __name__ == "__main__":
    raise SystemExit(chapter.finish())
