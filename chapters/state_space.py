"""State spaces: what a state of fixed size can carry along a text, and the matrices that such a recurrence is.

Linear systems in their two views, the selective scan and what it selects, the duality of recurrence and attention in
numbers, what each form costs as the text grows, and models with each on real text.
"""

# %%
import itertools
import time
import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
from matplotlib.patches import Rectangle
from numpy.polynomial import legendre
from threadpoolctl import threadpool_limits

from minitransformers.attention.banded_attention_blocks import banded_attention_blocks
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention_step
from minitransformers.attention.scaled_dot_product_attention_fast import scaled_dot_product_attention_fast
from minitransformers.basics.causal_convolution import causal_convolution
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.feed_forward import feed_forward
from minitransformers.basics.linear import linear
from minitransformers.basics.silu import silu
from minitransformers.basics.softmax import softmax
from minitransformers.basics.softplus import softplus
from minitransformers.foundation import trees
from minitransformers.models.decoding import generate, without_cache
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model, language_model_step
from minitransformers.models.workbench.transformer_block import transformer_block
from minitransformers.norms.rms_norm import rms_norm
from minitransformers.reporting.chapter import Chapter
from minitransformers.state_space.discretize import discretize
from minitransformers.state_space.hippo import hippo_legs
from minitransformers.state_space.linear_scan import linear_scan, scan
from minitransformers.state_space.lti import lti
from minitransformers.state_space.mamba import mamba
from minitransformers.state_space.mamba2 import init_mamba2, mamba2_step
from minitransformers.state_space.s4d import init_s4d, s4d
from minitransformers.state_space.selective_scan import selective_scan
from minitransformers.state_space.selective_scan_blocks import selective_scan_blocks
from minitransformers.state_space.semiseparable import off_diagonal_ranks, semiseparable
from minitransformers.state_space.ssd import ssd
from minitransformers.state_space.ssd_chunked import ssd_chunked
from minitransformers.state_space.ssd_quadratic import ssd_quadratic
from minitransformers.state_space.ssd_recurrent import ssd_recurrent
from minitransformers.training.fit import fit
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.optimizer import AdamW
from minitransformers.training.synthetic import NOISE, induction_heads, selective_copying
from minitransformers.training.task import Labelled, accuracy, on_ids
from minitransformers.training.text import Corpus

chapter = Chapter("state_space", __doc__)


def exponent(sizes, costs):
    """The slope of a straight line through the logarithms: cost grows as size to this power."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


# %% Linear systems: two views of one map, and what HiPPO's matrix remembers
def linear_systems_section():
    two_views()
    two_rules()
    legendre_memory()


def two_views():
    """Outputs and gradients of the recurrence and of the convolution, for a HiPPO system that has read a thousand inputs."""
    rng, length = chapter.rng(), 256 if chapter.quick else 1024
    A, B = hippo_legs(64)
    call = A, B, rng.normal(size=64) / 64, np.array(0.5), np.array(1 / length), rng.normal(size=(4, length))
    dout = rng.normal(size=(4, length))
    gaps = []
    for discretization in ("zoh", "bilinear"):
        one, two = (lti(*call, discretization=discretization, view=view) for view in ("recurrent", "convolution"))
        pairs = [(one[0], two[0]), *zip(one[1](dout), two[1](dout), strict=True)]
        gaps.append(max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs))
    chapter.value("lti.views.gap", max(gaps))
    chapter.value("lti.views.length", length)
    chapter.claim(
        "A linear recurrence is a convolution",
        paper="Gu, Goel and Re 2021 (S4), arXiv:2111.00396, section 2.3: unrolled, the discrete system is one convolution with a kernel",
        expect="outputs and all six gradients of the two views equal to rounding, for either discretisation",
        measured=f"largest relative difference {max(gaps):.0e} over {length:,} positions, d_state 64",
        holds=max(gaps) < 1e-11,
    )


def two_rules():
    """The gap between the zero-order hold and the bilinear rule in Abar, for HiPPO-LegS, as the step is halved."""
    A, B = hippo_legs(8)
    steps = 0.02 * 0.5 ** np.arange(7)
    gaps = []
    for step in steps:
        one, two = (discretize(A, B, np.array(step), method=method)[0][0] for method in ("zoh", "bilinear"))
        gaps.append(float(np.abs(one - two).max()))
    ratios = [wide / narrow for wide, narrow in itertools.pairwise(gaps)]
    chapter.table("rules", ["step", "gap in Abar", "times smaller than before"], zip(steps, gaps, [None, *ratios], strict=True))
    chapter.claim(
        "Bilinear rule and zero-order hold differ by the cube of the step",
        paper="Tustin 1947; in sequence models Gu, Goel and Re 2021, arXiv:2111.00396, eq. 3: the trapezium is right up to the second order",
        expect="halving the step divides the gap in Abar by a factor that tends to 8 as the step shrinks",
        measured=f"by {ratios[0]:.2f} at first, when step times the fastest rate is {8 * steps[0]:.2f}; by {ratios[-1]:.2f} in the end",
        holds=ratios == sorted(ratios) and abs(ratios[-1] - 8) < 0.1,
    )


def harmonics(samples):
    """Seven harmonics with random sizes and phases, at the middle of each of the samples of [0, 1]."""
    rng, s = chapter.rng(), (np.arange(samples) + 0.5) / samples
    sizes, phases = rng.normal(size=7), rng.uniform(0, 2 * np.pi, size=7)
    return s, sum(sizes[k] * np.sin(2 * np.pi * (k + 1) * s + phases[k]) for k in range(7))


def read_with_hippo(signal, d_state):
    """The scaled system t dc/dt = A c + B f, a sample at a time by the bilinear rule, and the signal that its last state holds."""
    A, B = hippo_legs(d_state)
    identity, state = np.eye(d_state), np.zeros(d_state)
    for k, sample in enumerate(signal):
        half = A / (2 * (k + 1))
        state = np.linalg.solve(identity - half, state + half @ state + B * sample / (k + 1))
    return as_signal(state, len(signal))


def as_signal(state, samples):
    s = (np.arange(samples) + 0.5) / samples
    return legendre.legval(2 * s - 1, state * np.sqrt(2 * np.arange(len(state)) + 1))


def legendre_memory():
    """How well the last state of HiPPO-LegS gives back the whole signal, beside the best polynomial of its degree."""
    sizes = (8, 16, 24, 32, 64) if chapter.quick else (8, 12, 16, 20, 24, 28, 32, 48, 64)
    coarse, fine = (250, 500) if chapter.quick else (1000, 4000)
    rows = []
    for d_state in sizes:
        row = [d_state]
        for samples in (coarse, fine):
            s, signal = harmonics(samples)
            row.append(float(np.linalg.norm(read_with_hippo(signal, d_state) - signal) / np.linalg.norm(signal)))
        best = legendre.legval(2 * s - 1, legendre.legfit(2 * s - 1, signal, d_state - 1))
        rows.append([*row, float(np.linalg.norm(best - signal) / np.linalg.norm(signal))])
    columns = ["d_state", f"error, {coarse:,} samples", f"error, {fine:,} samples", "best polynomial"]
    chapter.table("hippo", columns, [[*row[:3], row[3] if row[3] > 1e-12 else 0.0] for row in rows])
    error = {row[0]: row[1] for row in rows}
    chapter.value("hippo.coarse", coarse)
    chapter.value("hippo.error_8", error[8])
    chapter.value("hippo.error_32", error[32])
    chapter.claim(
        "HiPPO's state is the best polynomial of the past",
        paper="Gu et al. 2020 (HiPPO), arXiv:2008.07669, theorem 2: the coefficients of the best approximation of all that was read",
        expect="the error of the best polynomial down to a floor that the steps set; seven harmonics need more than 7 pi = 22 coefficients",
        measured=f"relative error {error[8]:.2f}, {error[16]:.2f}, {error[24]:.3f}, {error[32]:.3f} and {error[64]:.3f} with "
        f"8, 16, 24, 32 and 64 numbers; best polynomials {rows[0][3]:.2f}, {dict((r[0], r[3]) for r in rows)[16]:.2f} and "
        f"{dict((r[0], r[3]) for r in rows)[24]:.3f} with the first three",
        holds=all(abs(row[1] - row[3]) < 0.01 + 0.02 * row[3] for row in rows if row[0] <= 24) and error[32] < 0.02 < 0.5 < error[16],
        full_only=True,
    )
    with chapter.figure("hippo", size=(7, 3), ncols=2) as (_, (left, right)):
        for column, label in ((1, f"{coarse:,} samples"), (2, f"{fine:,} samples")):
            left.semilogy([row[0] for row in rows], [row[column] for row in rows], "o-", label=label)
        left.semilogy([row[0] for row in rows], [row[3] for row in rows], "--", color="#808080", label="best polynomial")
        left.axvline(7 * np.pi, color="#808080", linewidth=0.8)
        left.set(xlabel="numbers in the state", ylabel="relative error", ylim=(1e-4, 2))
        left.legend(loc="upper right")
        s, signal = harmonics(coarse)
        right.plot(s, signal, color="#808080", linewidth=3, alpha=0.5, label="what was read")
        for d_state in (16, 32):
            right.plot(s, read_with_hippo(signal, d_state), linewidth=1.3, label=f"{d_state} numbers")
        right.set(xlabel="time")
        right.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.15), columnspacing=1, handlelength=1.2)


linear_systems_section()


# %% S4D: a delay, learned
DELAY, DELAY_LENGTH = 48, 128


def delay_section():
    """Systems of 32 modes learn to give back their input 48 positions later; each channel is a run with a step of its own."""
    step_sizes = np.geomspace(0.01, 0.1, 4 if chapter.quick else 12)
    runs = {
        name: learn_delay(step_sizes, kind=kind, d_state=d_state, updates=20 if chapter.quick else 500)
        for name, kind, d_state in (
            ("S4D-Lin", "lin", 64), ("S4D-LegS", "legs", 64), ("S4D-Inv", "inv", 64), ("S4D-Real", "real", 64), ("S4D-Real, twice the modes", "real", 128),
        )
    }  # fmt: skip
    rows = [[name, *(float(value) for value in (losses.min(), np.median(losses), losses.max()))] for name, (losses, _) in runs.items()]
    chapter.table("delay", ["start", "best loss", "median loss", "worst loss"], rows)
    chapter.value("delay.delay", DELAY)
    best = {row[0]: row[1] for row in rows}
    chapter.value("delay.best", {"lin": best["S4D-Lin"], "real": min(best["S4D-Real"], best["S4D-Real, twice the modes"])})
    chapter.claim(
        "Waves can wait, plain decays cannot",
        paper="Gu et al. 2022 (S4D), arXiv:2206.11893, section 4: the imaginary parts of A are the frequencies in which a state keeps the past",
        expect=f"to give back white noise {DELAY} positions later: S4D-Lin loses far less than 1, S4D-Real hardly less than 1, with as many modes or twice",
        measured=f"best of {len(step_sizes)} steps: S4D-Lin {best['S4D-Lin']:.2f}, S4D-Real {best['S4D-Real']:.2f}, with twice the modes "
        f"{best['S4D-Real, twice the modes']:.2f} (1 is an output of zeros)",
        holds=best["S4D-Lin"] < 0.3 and min(best["S4D-Real"], best["S4D-Real, twice the modes"]) > 0.8,
        full_only=True,
    )
    others = min(best["S4D-LegS"], best["S4D-Inv"])
    chapter.claim(
        "Of the complex starts the evenly spaced one keeps a delay best",
        paper="Gu et al. 2022, arXiv:2206.11893, section 4: S4D-Lin spaces its frequencies evenly, S4D-LegS and S4D-Inv as HiPPO does; which is "
        "best for a delay is not said",
        expect="a delay is one pulse in time, flat over all frequencies: evenly spaced waves should fit it best",
        measured=f"best losses: S4D-Lin {best['S4D-Lin']:.2f}, S4D-LegS {best['S4D-LegS']:.2f}, S4D-Inv {best['S4D-Inv']:.2f}",
        holds=best["S4D-Lin"] < others,
        full_only=True,
    )
    with chapter.figure("delay", size=(7, 3), ncols=2) as (_, (left, right)):
        for name in ("S4D-Lin", "S4D-LegS", "S4D-Inv", "S4D-Real"):
            left.semilogx(step_sizes, runs[name][0], "o-", label=name)
        left.set(xlabel="step at the start", ylabel="loss", ylim=(0, 1.1), xticks=[0.01, 0.02, 0.05, 0.1], xticklabels=["0.01", "0.02", "0.05", "0.1"])
        left.minorticks_off()
        left.legend(loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))
        for name, colour in (("S4D-Lin", 0), ("S4D-Real", 3)):
            losses, params = runs[name]
            right.plot(impulse_response(params)[:, losses.argmin()], color=f"C{colour}", label=name)
        right.axvline(DELAY, color="#808080", linewidth=0.8)
        right.set(xlabel="positions after a pulse", ylabel="output of the best run")
        right.legend()
    kernel_cost()


def learn_delay(step_sizes, *, kind, d_state, updates):
    """The mean loss of each channel over the last tenth of training, and the parameters."""
    rng, length, channels = chapter.rng(), DELAY_LENGTH, len(step_sizes)
    start = init_s4d(rng, channels, d_state=d_state, kind=kind)
    params = FlatTree.pack(start._replace(log_step=np.log(step_sizes).astype(np.float32), D=np.zeros(channels, np.float32)))
    optimizer, losses = AdamW(params, weight_decay=0.0), []
    for update in range(updates):
        x = rng.standard_normal((4, length, channels), dtype=np.float32)
        out, backward = s4d(params.tree, x)
        miss = out[:, DELAY:] - x[:, :-DELAY]                # before that nothing can be given back
        losses.append((miss * miss).mean((0, 1)))
        dout = np.zeros_like(out)
        dout[:, DELAY:] = miss * (2 / miss[..., 0].size)
        dparams, _ = backward(dout)
        rate = 1e-2 * min(1.0, 2 * (1 - update / updates))   # the second half runs out
        optimizer.step(FlatTree.pack(dparams), learning_rate=rate)
    return np.mean(losses[-max(1, updates // 10) :], axis=0), params.tree


def impulse_response(params):
    pulse = np.zeros((DELAY_LENGTH, len(params.D)), np.float32)
    pulse[0] = 1
    return s4d(params, pulse)[0]


def kernel_cost():
    """The kernel and its gradient by one table of all powers, as in the paper's code, against the two short tables of s4d."""
    rng, length, channels = chapter.rng(), 512 if chapter.quick else 4096, 32
    params = init_s4d(rng, channels)
    x = rng.standard_normal((1, length, channels), dtype=np.float32)
    A = -np.exp(params.log_A_real) + 1j * params.A_imag
    lam = np.exp(params.log_step)[:, None] * A
    c = (params.C[..., 0] + 1j * params.C[..., 1]) * np.expm1(lam) / A

    def one_table():
        table = np.exp(lam[..., None] * np.arange(length))
        kernel = 2 * (c[:, None] @ table).real[:, 0]
        return kernel, (table.conj() @ kernel[..., None], table.conj() @ (kernel * np.arange(length))[..., None])

    def two_tables():
        out, backward = s4d(params, x)
        return out, backward(out)

    seconds = {one_table: [], two_tables: []}
    for _ in range(3 if chapter.quick else 5):
        for way, taken in seconds.items():
            began = time.perf_counter()
            way()
            taken.append(time.perf_counter() - began)
    ratio = float(np.median(seconds[one_table]) / np.median(seconds[two_tables]))
    chapter.value("s4d.table.length", length)
    chapter.value("s4d.table.time_ratio", ratio)
    chapter.value("s4d.table.memory_ratio", length / (2 * np.ceil(np.sqrt(length))))


delay_section()


# %% The selective scan drawn: what is kept, written and read, and what comes back
def selection_figure():
    """One channel with one state: two long steps among short ones, and two positions that read."""
    positions, long, reads = np.arange(12), [2, 7], [4, 11]
    delta, u, A, C = np.full((12, 1), 0.12), np.full((12, 1), 0.5), np.array([[-1.0]]), np.zeros((12, 1))
    delta[long], u[long], C[reads] = [[1.0], [2.5]], [[1.4], [0.6]], 1.0
    ones = np.ones((12, 1, 1))                                                  # one group, one state
    (h, _), _ = selective_scan(u, delta, A, ones, ones)                         # read everywhere, to see the states
    _, backward = selective_scan(u, delta, A, ones, C[:, None])
    written = delta * u
    adjoint = backward((np.ones_like(u), np.zeros((1, 1))))[3][:, 0] / written  # dB = adjoint delta u
    with chapter.figure("selective_scan", size=(4.8, 4.4), nrows=3, sharex=True, gridspec_kw={"height_ratios": (2, 3, 3)}) as (_, axes):
        steps, states, adjoints = axes
        steps.bar(positions - 0.5, delta[:, 0], width=0.3, color="C5")
        steps.set(title="step Δ into each position", yticks=[0, 1, 2])
        stacks = ((states, h - written, written, ("C0", "kept"), ("C1", "written")), (adjoints, adjoint - C, C, ("C3", "from later"), ("C2", "from here")))
        for ax, low, high, *named in stacks:
            for height, base, (colour, label) in zip((low, high), (0 * low, low), named, strict=True):
                ax.bar(positions, height[:, 0], bottom=base[:, 0], width=0.5, color=colour, label=label)
        states.plot(reads, h[reads, 0] + 0.15, "v", color="C2", label="read")
        states.set(title="state h, from left to right", ylim=(0, 1.8), yticks=[0, 1])
        adjoints.set(title="adjoint λ, from right to left", xlabel="position", xticks=positions, ylim=(0, 1.1), yticks=[0, 1])
        for ax in axes:
            ax.grid(False)
            for t in long:
                ax.axvline(t - 0.5, color="#808080", linewidth=0.8, linestyle=":", zorder=0)
        for ax in axes[1:]:
            ax.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.02, 0.97), handlelength=0.8, handletextpad=0.4, columnspacing=0.9, borderaxespad=0)


selection_figure()


# %% Scans: one recurrence, three orders of work
class Counted(np.ndarray):
    """An array that counts the multiplications done on it, one an element, and the operations that do them."""

    products = operations = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **settings):
        if out is not None:
            settings["out"] = tuple(np.asarray(o) for o in out)
        result = getattr(ufunc, method)(*(np.asarray(i) for i in inputs), **settings)
        if ufunc is np.multiply:
            Counted.products, Counted.operations = Counted.products + result.size, Counted.operations + 1
        return out[0] if out is not None else result.view(Counted)


def hillis_steele(decay, drive):
    """Every position takes in the one 1, 2, 4, ... before it: few steps, but all positions work in each."""
    decay, states, reach = decay.copy(), drive.copy(), 1
    while reach < len(states):
        states[reach:] = states[reach:] + decay[reach:] * states[:-reach]
        decay[reach:] = decay[reach:] * decay[:-reach]
        reach *= 2
    return states


ORDERS = {
    "sequential": lambda decay, drive: scan(decay, drive, np.zeros_like(drive[0])),
    "chunked": lambda decay, drive: scan(decay, drive, np.zeros_like(drive[0]), form="chunked"),
    "associative": lambda decay, drive: scan(decay, drive, np.zeros_like(drive[0]), form="associative"),
    "Hillis-Steele": hillis_steele,
}


def scan_work_section():
    sizes, rows, counts = [2**k for k in range(8, 14)], [], {}  # from a few chunks on
    for name, order in ORDERS.items():
        counts[name], steps = [], 0
        for n in sizes:
            Counted.products = Counted.operations = 0
            order(*np.ones((2, n, 1)).view(Counted))
            counts[name].append(Counted.products)
            steps = Counted.operations
        chapter.value(f"scans.{name}.exponent", exponent(sizes, counts[name]))
        rows.append((name, counts[name][-1] / sizes[-1], steps, exponent(sizes, counts[name])))
    chapter.table("scan-work", ["order", f"products a position, L = {sizes[-1]}", "sequential operations", "exponent in L"], rows)
    linear = max(exponent(sizes, counts[name]) for name in ("sequential", "chunked", "associative"))
    doubling = exponent(sizes, counts["Hillis-Steele"])
    chapter.claim(
        "A scan can be parallel without more than linear work",
        paper="Blelloch 1990, section 1.4: O(n) work in O(log n) steps; doubling the reach, O(n log n) work",
        expect="fitted exponents near 1 for three orders, above 1.1 for Hillis-Steele, on counted products; from a few chunks on: "
        "a text of a single chunk costs less a position, and would make the chunked order's line steeper",
        measured=f"at most {linear:.2f} for the three, {doubling:.2f} for Hillis-Steele, with "
        f"{counts['associative'][-1] / sizes[-1]:.2f} and {counts['Hillis-Steele'][-1] / sizes[-1]:.2f} products a position",
        holds=linear < 1.03 and doubling > 1.1,
    )
    return sizes, counts


def scan_error_section():
    rng, n, rows, worst = chapter.rng(), 200, [], 0.0
    u, z, B, C = (rng.normal(size=(2, n, width)) for width in (6, 6, 4, 4))
    delta, A, D = np.exp(rng.uniform(np.log(1e-3), 0, (2, n, 6))), -np.exp(rng.uniform(-1, 1, (6, 4))), rng.normal(size=6)
    call, dout = (u, delta, A, B[:, :, None], C[:, :, None], D, z, rng.normal(size=(2, 6, 4))), (rng.normal(size=u.shape), rng.normal(size=(2, 6, 4)))

    def results(one, dtype):
        result, backward = one(*(a.astype(dtype) for a in call))
        return [*result, *backward(tuple(d.astype(dtype) for d in dout))]

    def gap(own, exact):
        return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(own, exact, strict=True))

    exact = results(selective_scan, np.float64)
    for form, chunk in (("sequential", 7), ("chunked", 16), ("chunked", 64), ("associative", 64)):
        double, single = (results(partial(selective_scan_blocks, form=form, chunk=chunk), dtype) for dtype in (np.float64, np.float32))
        worst = max(worst, gap(double, exact))
        rows.append((form, chunk if form != "associative" else "-", gap(double[:2], exact[:2]), gap(double[2:], exact[2:]), gap(single, exact)))
    chapter.table("scan-errors", ["order", "chunk", "outputs, float64", "gradients, float64", "all, float32"], rows)
    chapter.value("scans.worst_gap", worst)
    chapter.claim(
        "Every order of work gives the same outputs and gradients",
        paper="Gu and Dao 2023, section 3.3.2: the recurrence is an associative scan; the backward computes the states again",
        expect="equal to 1e-12 in float64, at any chunk, in all eight gradients",
        measured=f"largest relative difference {worst:.1e} over {n} positions",
        holds=worst < 1e-12,
    )


def scan_memory_section():
    rng, rows = chapter.rng(), []
    sizes = [256, 512] if chapter.quick else [512, 1024, 2048]
    for n in sizes:
        u, z, B, C = (rng.normal(size=(1, n, width)).astype(np.float32) for width in (64, 64, 16, 16))
        delta, A = np.full_like(u, 0.01), np.full((64, 16), -1, np.float32)
        peaks = []
        for form in ("sequential", "associative"):
            tracemalloc.start()
            result, backward = selective_scan_blocks(u, delta, A, B[:, :, None], C[:, :, None], None, z, form=form)
            kept = tracemalloc.get_traced_memory()[0]
            backward(result)
            peaks += [kept / 2**20, tracemalloc.get_traced_memory()[1] / 2**20]
            tracemalloc.stop()
        rows.append((n, n * 64 * 16 * 4 / 2**20, *peaks[:2], peaks[3]))
    chapter.table("scan-memory", ["L", "all states, MiB", "kept for backward", "peak", "peak, associative"], rows)
    n, states, kept, peak, _ = rows[-1]
    chapter.value("scans.memory", {"length": n, "states": states, "kept": kept, "peak": peak})
    chapter.claim(
        "The backward needs no stored states",
        paper="Gu and Dao 2023, section 3.3.2: intermediate states are not saved but recomputed in the backward",
        expect="what is kept between forward and backward is less than half of all states",
        measured=f"at L = {n}: {kept:.1f} MiB kept, {peak:.1f} at the peak; the states alone are {states:.1f}",
        holds=kept < states / 2,
    )


def scan_time_section(sizes, counts):
    rng, rounds = chapter.rng(), 1 if chapter.quick else 5
    lengths, lanes = ([128, 256], (16, 512)) if chapter.quick else ([512, 1024, 2048, 4096], (16, 1024))
    forms, times = ("sequential", "chunked", "associative"), {}
    for width in lanes:
        for n in lengths:
            decay, drive, dout = rng.uniform(0.5, 1, (n, width)).astype(np.float32), *rng.standard_normal((2, n, width), np.float32)
            taken = {form: [] for form in forms}
            for _ in range(rounds):
                for form in rng.permutation(forms):
                    start = time.process_time()              # not the clock on the wall: one thread, on a machine that may be busy
                    linear_scan(decay, drive, form=str(form))[1](dout)
                    taken[form].append(time.process_time() - start)
            for form in forms:
                times.setdefault((width, form), []).append(1e3 * float(np.median(taken[form])))
    with chapter.figure("scans", size=(7.6, 2.9), ncols=3) as (_, axes):
        for name, products in counts.items():
            axes[0].semilogx(sizes, np.array(products) / np.array(sizes), base=2, marker="o", label=name)
        axes[0].set(xlabel="L", title="products a position", ylim=(0, None))
        axes[0].legend()
        for ax, width in zip(axes[1:], lanes, strict=True):
            for form in forms:
                ax.loglog(lengths, times[width, form], marker="o", base=2, label=form)
            ax.set(xlabel="L", title=f"{width} lanes: ms")
            ax.set_xticks(lengths, [str(n) for n in lengths])
            ax.minorticks_off()
    rows = [(width, form, times[width, form][-1], exponent(lengths, times[width, form])) for width in lanes for form in forms]
    chapter.table("scan-times", ["lanes", "order", f"processor ms at L = {lengths[-1]}", "exponent in L"], rows)
    few, many = (times[width, "chunked"][-1] / times[width, "sequential"][-1] for width in lanes)
    chapter.claim(
        "On one core the plain loop wins as soon as a step is long",
        paper="Gu and Dao 2023, section 3.3.2: on a GPU the loop's L steps are what costs, so the scan is made parallel",
        expect="chunks faster than the loop with 16 lanes, where a step is mostly overhead; slower with 1024, where more work is more time",
        measured=f"chunked takes {few:.2f} times the loop's time with {lanes[0]} lanes, {many:.2f} times with {lanes[1]}, "
        f"forward and backward at L = {lengths[-1]}",
        holds=few < 1 < many,
        full_only=True,
    )


scan_error_section()
scan_memory_section()
scan_time_section(*scan_work_section())


# %% Duality: one map in three forms, and the ranks of its matrix
def ssd_call(rng, n, *, batch=(), heads=4, groups=1, d_head=64, d_state=64, dtype=np.float32):
    """x, delta, A, B, C with steps and rates as Mamba-2 starts them."""
    rows, states = (*batch, n, heads, d_head), (*batch, n, groups, d_state)
    x, B, C = (rng.normal(size=shape).astype(dtype) for shape in (rows, states, states))
    delta = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), rows[:-1])).astype(dtype)
    return x, delta, -rng.uniform(1, 16, heads).astype(dtype), B, C


def three_forms():
    rng, n = chapter.rng(), 100
    inputs = ssd_call(rng, n, heads=4, groups=2, d_head=6, d_state=5, dtype=np.float64)
    call = (*inputs, rng.normal(size=(4, 1)), None, rng.normal(size=(4, 6, 5)))
    dout = rng.normal(size=(n, 4, 6)), rng.normal(size=(4, 6, 5))

    def results(core):
        out, backward = ssd(*call, core=core)
        return [part for part in (*out, *backward(dout)) if part is not None]

    exact, rows = results(ssd_recurrent), []
    for name, core in [("quadratic", ssd_quadratic), *((f"chunks of {q}", partial(ssd_chunked, chunk=q)) for q in (1, 7, 32, n))]:
        gaps = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(results(core), exact, strict=True)]
        rows.append((name, max(gaps[:2]), max(gaps[2:])))
    chapter.table("ssd-forms", ["against the recurrent form", "outputs", "gradients"], rows)
    worst = max(max(row[1:]) for row in rows)
    chapter.value("duality.worst_gap", worst)
    chapter.claim(
        "The recurrence, the masked attention and the chunked form are one map",
        paper="Dao and Gu 2024, sections 5.3 and 6: SSD has a linear and a quadratic form, and its matrix can be cut into blocks",
        expect="equal to 1e-12 in float64, with all seven gradients, at any chunk",
        measured=f"largest relative difference {worst:.1e} over {n} positions",
        holds=worst < 1e-12,
    )


def decay_gradients_in_float32():
    """What float32 leaves of the gradient of A, which weighs the decays' by the steps: term by term, and by the balance in one line."""
    rng, n = chapter.rng(), 256 if chapter.quick else 2048
    x, steps, A, B, C = ssd_call(rng, n, heads=2, dtype=np.float64)
    dout, with_reset = (rng.normal(size=x.shape), np.zeros((2, 64, 64))), steps.copy()
    with_reset[20] = 1e6

    def gradient(form, dtype, steps, balance=False):
        call = [a.astype(dtype) for a in (steps[..., None] * x, steps * A, B, C)]
        (y, _), backward = form(*call)
        dy, dstate = (d.astype(dtype) for d in dout)
        dinput, dlog_decay, *_ = backward((dy, dstate))
        if balance:
            dlog_decay = np.cumsum((np.vecdot(dy, y) - np.vecdot(dinput, call[0]))[::-1], axis=0)[::-1]
        return (steps.astype(dtype) * dlog_decay).sum(0)

    def gap(form, **balance):
        for exact, delta in zip(exacts, (steps, with_reset), strict=True):
            yield float(np.abs(gradient(form, np.float32, delta, **balance) - exact).max() / np.abs(exact).max())

    exacts = [gradient(ssd_recurrent, np.float64, delta) for delta in (steps, with_reset)]
    forms = [("recurrent", ssd_recurrent), *((f"chunks of {q}", partial(ssd_chunked, chunk=q)) for q in (32, n))]
    rows = [(name, *gap(form)) for name, form in forms]
    rows.append(("the balance over the whole sequence", *gap(ssd_chunked, balance=True)))
    chapter.table("ssd-float32", ["dA in float32 against float64", "steps as Mamba-2 starts", "and one reset"], rows)
    own, balance = rows[1][1:], rows[-1][1:]
    chapter.value("duality.float32", {"length": n, "worst": max(own), "balance": balance[0], "balance_reset": balance[1]})
    chapter.claim(
        "Term by term the gradients of the decays keep their digits in float32; by the balance in one line they do not",
        paper="no statement; the authors' code calls the line not stable, for half precision",
        expect=f"dA right to 1e-5 in chunks of 32, with a reset or without, at {n} positions; by the balance ten times worse, at a reset wrong",
        measured=f"relative error {max(own):.1e} term by term; by the balance {balance[0]:.1e}, with a reset {balance[1]:.1e}",
        holds=max(own) < 1e-5 and balance[0] > 10 * own[0] and balance[1] > 1e-2,
        full_only=True,
    )


def ranks_section():
    rng, n, d_state = chapter.rng(), 64, 4
    B, C = rng.normal(size=(2, n, d_state))
    log_decay = -rng.uniform(0.0, 0.2, n)
    M, _ = semiseparable(log_decay, B, C)
    weights, _ = softmax(np.where(causal_mask(n), C @ B.T, -np.inf))  # the same scores under a softmax
    cuts = [int(ranks.max()) for ranks in (off_diagonal_ranks(M), off_diagonal_ranks(weights))]
    blocks = [np.linalg.svd(matrix[n // 2 :, : n // 2], compute_uv=False) for matrix in (M, weights)]
    names = (f"SSD, a state of {d_state}", "softmax attention")
    with chapter.figure("duality", size=(8.4, 2.9), ncols=3, width_ratios=(1, 1, 1.25)) as (_, axes):
        for ax, matrix, name in zip(axes, (M, weights), names, strict=False):
            ax.imshow(np.where(causal_mask(n), np.abs(matrix) ** 0.5, np.nan))  # roots: small entries are to be seen
            ax.add_patch(Rectangle((-0.5, n / 2 - 0.5), n / 2, n / 2, fill=False, edgecolor="#d0691f", linewidth=1.6))
            ax.set(title=name, xlabel="input", xticks=[0, n // 2, n - 1], yticks=[0, n // 2, n - 1])
            ax.grid(False)
        axes[0].set_ylabel("output")
        for values, name, marker, front in zip(blocks, names, "os", (3, 2), strict=True):
            shown = np.maximum(values / values[0], 1e-18)
            axes[2].semilogy(np.arange(1, n // 2 + 1), shown, marker=marker, linestyle="none", zorder=front, label=name)
        axes[2].set(title="singular values of the framed block", xlabel="number")
        axes[2].legend()
    gap = float(blocks[0][d_state] / blocks[0][0])
    chapter.value("duality.ranks", {"ssd": cuts[0], "softmax": cuts[1], "positions": n, "d_state": d_state, "half": n // 2, "next": gap})
    chapter.claim(
        "A state of N numbers is a matrix whose blocks below the diagonal have rank N",
        paper="Dao and Gu 2024, theorem 3.5: a state-space model of state size N is a semiseparable matrix of order N",
        expect=f"rank {d_state} at most at each of {n - 1} cuts; with the same scores under a softmax, up to {n // 2}",
        measured=f"at most {cuts[0]} and {cuts[1]}; singular value {d_state + 1} of the middle block is {gap:.0e} of the first",
        holds=cuts == [d_state, n // 2],
    )


three_forms()
decay_gradients_in_float32()
ranks_section()


# %% Time against length: scan, SSD and attention
def mixing_cores(rng, n):
    """What mixes n positions of width 256, without maps around it: a forward and a backward each, float32, no batch."""
    u, z, dy = rng.standard_normal((3, n, 256), np.float32)
    scan_call = (u, np.full_like(u, 0.01), -np.tile(np.arange(1, 17, dtype=np.float32), (256, 1)), *rng.standard_normal((2, n, 1, 16), np.float32), None, z)
    call, dlast = ssd_call(rng, n), np.zeros((4, 64, 64), np.float32)
    q, k, v, dheads = rng.standard_normal((4, 4, n, 64), np.float32)

    def by_scan():
        selective_scan_blocks(*scan_call)[1]((dy, None))

    def by_ssd(core):
        return lambda: ssd(*call, core=core)[1]((dy.reshape(n, 4, 64), dlast))

    return {
        "SSD, chunked": by_ssd(ssd_chunked),
        "SSD, recurrent": by_ssd(ssd_recurrent),
        "SSD, quadratic": by_ssd(ssd_quadratic),
        "selective scan": by_scan,
        "attention": lambda: scaled_dot_product_attention_fast(q, k, v, mask=causal_mask(n))[1](dheads),
        "attention, window 256": lambda: banded_attention_blocks(None, q, k, v, window=256)[1](dheads),
    }


def crossing(sizes, a, b):
    """The length from which b costs more than a, between two measured ones on a straight line in the logarithms; None without one."""
    gaps = np.log(b) - np.log(a)
    if (gaps < 0).all():
        return None
    last = int(np.flatnonzero(gaps < 0).max(initial=-1))
    if last < 0:
        return float(sizes[0])
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    return float(np.exp(np.log(sizes[last]) + share * np.log(sizes[last + 1] / sizes[last])))


def time_against_length():
    rng = chapter.rng()
    sizes = [64, 128, 256] if chapter.quick else [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]
    limits = {"SSD, quadratic": 2048, "attention": 4096, "SSD, recurrent": 8192, "attention, window 256": 8192}
    times = {}
    with threadpool_limits(limits=1, user_api="blas"):
        for n in chapter.progress(sizes, "time against length"):
            cores = {name: core for name, core in mixing_cores(rng, n).items() if n <= limits.get(name, n)}
            taken = {name: [] for name in cores}
            for _ in range(1 if n > 1024 or chapter.quick else 3):
                for name in rng.permutation(list(cores)):
                    start = time.process_time()              # not the clock on the wall: others may use this machine
                    cores[str(name)]()
                    taken[str(name)].append(time.process_time() - start)
            for name, laps in taken.items():
                times.setdefault(name, []).append(1e3 * max(float(np.median(laps)), 1e-6))
    slopes = {name: exponent(sizes[max(0, len(ms) - 4) : len(ms)], ms[-4:]) for name, ms in times.items()}  # the longest four
    at = min(len(ms) for ms in times.values()) - 1           # the longest length that all have
    met = crossing(sizes, np.array(times["SSD, chunked"][: len(times["attention"])]), np.array(times["attention"]))
    with chapter.figure("length", size=(6.4, 3.4)) as (_, ax):
        for (name, ms), marker in zip(times.items(), "osD^vP", strict=True):
            ax.loglog(sizes[: len(ms)], ms, base=2, marker=marker, label=f"{name} ({slopes[name]:.1f})")
        ax.set_yscale("log", base=10)
        ax.set(xlabel="positions", ylabel="ms, forward and backward")
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
        ax.minorticks_off()
        ax.legend()
    columns = ["core", *(f"ms at {sizes[i]:,}" for i in (0, at)), "ms at the longest", "longest", "exponent"]
    chapter.table("length", columns, [(name, ms[0], ms[at], ms[-1], sizes[len(ms) - 1], slopes[name]) for name, ms in times.items()])
    chunked, recurrent, scanned = (times[name][at] for name in ("SSD, chunked", "SSD, recurrent", "selective scan"))
    chapter.value("length.exponent", {name.replace("SSD, ", "").replace("attention, window 256", "window").replace("selective ", ""): slope
                                      for name, slope in slopes.items()})  # fmt: skip
    chapter.value("length.speed", {"shortest": sizes[0], "common": sizes[at], "longest": sizes[-1], "over_recurrent": recurrent / chunked,
                             "over_scan": scanned / chunked, "crossing": round(met or 0)})  # fmt: skip
    chapter.claim(
        "Chunks cost linear time, attention and the quadratic form quadratic time",
        paper="Dao and Gu 2024, theorem 6.1 and section 6.3: T N^2 for SSD in chunks, T^2 N for attention",
        expect=f"fitted exponents, over the four longest lengths, of at most 1.1 in chunks (to {sizes[-1]:,}) and above 1.6 for both others",
        measured=", ".join(f"{name} {slopes[name]:.2f}" for name in ("SSD, chunked", "SSD, quadratic", "attention")),
        holds=slopes["SSD, chunked"] <= 1.1 and min(slopes["SSD, quadratic"], slopes["attention"]) > 1.6,
        full_only=True,
    )
    chapter.claim(
        "Matrix products make a state four times as large cheaper than a scan",
        paper="Dao and Gu 2024, section 9.3: SSD is 2 to 8 times as fast as Mamba's scan, with larger states",
        expect=f"at equal width and {sizes[at]:,} positions SSD with a state of 64 takes less time than the selective scan with 16, and at most a "
        "third of its own recurrent form's",
        measured=f"the scan takes {scanned / chunked:.1f} times as long, the recurrent form {recurrent / chunked:.1f} times",
        holds=scanned > chunked and recurrent > 3 * chunked,
        full_only=True,
    )
    chapter.claim(
        "From some length on SSD is faster than attention",
        paper="Dao and Gu 2024, section 9.3, figure 10: faster than FlashAttention-2 from 2,000 positions on",
        expect="a crossing earlier than there: attention here is dense and unfused",
        measured="no crossing" if met is None else f"from {met:,.0f} positions on" if met > sizes[0] else f"at all lengths from {sizes[0]} on",
        holds=met is not None and met <= 2048,
        full_only=True,
    )


def memory_against_length():
    rng, sizes = chapter.rng(), [128, 256] if chapter.quick else [1024, 2048, 4096, 8192]
    peaks = {"chunked": [], "quadratic": []}
    for n in sizes:
        call, dout = ssd_call(rng, n, heads=2, d_head=16, d_state=16), (np.ones((n, 2, 16), np.float32), np.zeros((2, 16, 16), np.float32))
        for form, core in (("chunked", ssd_chunked), ("quadratic", ssd_quadratic)):
            if form == "chunked" or n <= 1024:
                tracemalloc.start()
                ssd(*call, core=core)[1](dout)
                peaks[form].append(tracemalloc.get_traced_memory()[1] / 2**20)
                tracemalloc.stop()
    slope = exponent(sizes, peaks["chunked"])
    chapter.value("length.memory", {"exponent": slope, "peak": peaks["chunked"][-1], "longest": sizes[-1],
                                    "short": peaks["chunked"][0], "quadratic": peaks["quadratic"][-1], "at": sizes[len(peaks["quadratic"]) - 1]})  # fmt: skip
    chapter.claim(
        "In chunks the memory of forward and backward is linear",
        paper="Dao and Gu 2024, section 6.3: memory T N, against T^2 for attention written out",
        expect="peak memory grows with the length to a power of at most 1.05",
        measured=f"to the power {slope:.2f}, {peaks['chunked'][-1]:.1f} MiB at {sizes[-1]:,} positions (2 heads of 16)",
        holds=slope <= 1.05,
    )


time_against_length()
memory_against_length()


# %% Decoding: a state of fixed size against a cache that grows
def decoding_section():
    rng, width = chapter.rng(), 128
    marks = [16, 32, 64] if chapter.quick else [64, 128, 256, 512, 1024, 2048, 4096, 8192]
    recurrent = init_mamba2(rng, width)
    attention = init_multi_head_attention(rng, width, num_heads=4)
    steps = {
        "Mamba-2": lambda x, state: mamba2_step(recurrent, x, state),
        "attention": lambda x, state: multi_head_attention_step(attention, x, state, num_heads=4),
    }

    def size(state):
        return state.bytes if hasattr(state, "bytes") else sum(a.nbytes for a in state)

    def formula(name, n):
        d_mixed, taps = recurrent.conv.weight.shape
        return 4 * ((taps - 1) * d_mixed + len(recurrent.norm.gain) * 64) if name == "Mamba-2" else 4 * 2 * n * width

    bytes_, millis, exact = {name: [] for name in steps}, {name: [] for name in steps}, True
    for name, step in steps.items():
        state, seen = None, 0
        for mark in chapter.progress(marks, f"decoding, {name}"):
            while seen < mark:                               # read up to here, a piece at a time
                piece = min(256, mark - seen)
                _, state = step(rng.standard_normal((1, piece, width), np.float32), state)
                seen += piece
            bytes_[name].append(size(state))
            exact = exact and size(state) == formula(name, seen)
            laps, token = [], rng.standard_normal((1, 1, width), np.float32)
            for _ in range(5 if chapter.quick else 15):
                start = time.process_time()
                _, state = step(token, state)
                laps.append(time.process_time() - start)
                seen += 1
            millis[name].append(1e3 * float(np.median(laps)))
    equal = next((n for n in range(1, marks[-1] + 1) if formula("attention", n) >= formula("Mamba-2", n)), marks[-1])
    with chapter.figure("decoding", size=(7.6, 2.9), ncols=2) as (_, axes):
        for name, marker in zip(steps, "os", strict=True):
            axes[0].loglog(marks, np.array(bytes_[name]) / 1024, base=2, marker=marker, label=name)
            axes[1].semilogx(marks, millis[name], base=2, marker=marker, label=name)
        axes[0].set(title="what is kept of the past: KiB", xlabel="position")
        axes[1].set(title="ms for the next token", xlabel="position", ylim=(0, None))
        for ax in axes:
            ax.set_xticks(marks[::2], [f"{n:,}" for n in marks[::2]])
            ax.minorticks_off()
        axes[0].set_yscale("log", base=10)
        axes[0].legend()
    columns = ["after", "Mamba-2, KiB", "attention, KiB", "Mamba-2, ms", "attention, ms"]
    chapter.table("decoding", columns, [(n, *(bytes_[name][i] / 1024 for name in steps), *(millis[name][i] for name in steps)) for i, n in enumerate(marks)])
    level = next((n for n, a, b in zip(marks, *millis.values(), strict=True) if a <= b), 0)
    growth = {name: found[-1] / found[0] for name, found in millis.items()}
    chapter.value("decoding.sizes", {
        "width": width, "state": bytes_["Mamba-2"][0] / 1024, "cache": bytes_["attention"][-1] / 1024, "equal": equal, "first": marks[0],
        "last": marks[-1], "level": level, "growth": {"mamba2": growth["Mamba-2"], "attention": growth["attention"]},
    })  # fmt: skip
    chapter.claim(
        "What Mamba-2 keeps of the past does not grow",
        paper="Dao and Gu 2024, section 1: a constant state; attention's cache is linear in the length",
        expect="the same bytes after every position, and those of the formula, for states and caches as they are",
        measured=f"{bytes_['Mamba-2'][0] / 1024:.0f} KiB after {marks[0]} and after {marks[-1]:,} positions; attention's cache is as large after {equal}",
        holds=exact and len(set(bytes_["Mamba-2"])) == 1,
    )
    chapter.claim(
        "The next token costs the same at every position",
        paper="Dao and Gu 2024, section 1: constant time a token",
        expect=f"from position {marks[0]} to {marks[-1]:,} less than 1.5 times the time for Mamba-2, more than that for attention",
        measured=f"{growth['Mamba-2']:.1f} times and {growth['attention']:.1f} times",
        holds=growth["Mamba-2"] < 1.5 < growth["attention"],
        full_only=True,
    )


decoding_section()


# %% Selective copying: what a system that cannot choose cannot do
keep_freed_memory()  # a step of training frees and takes the same arrays again and again


def model_with(mixer, *, vocabulary_size, d_model=32, context=64, position="none", **options):
    """Two blocks with this mixer: the same frame for every mixer that is compared."""
    return LanguageModelConfig(
        vocabulary_size, context=context, d_model=d_model, num_layers=2, num_heads=4, mixer=mixer, position=position, norm="rms_norm",
        options={"mixer": options, "channel": {"d_hidden": d_model}},
    )  # fmt: skip


def bar(text):
    """What fit shows while it runs."""
    return partial(chapter.progress, text=text)


def each_mixer(params, change):
    """The same parameters with ``change(mixer)`` in every block."""
    return params._replace(blocks=[block._replace(mixer=change(block.mixer)) for block in params.blocks])


def without_selection(mixer, bias=None):
    """Delta, B and C no longer depend on the input: their maps are 0. B and C are then the bias; delta has one already."""
    low, parts = np.zeros_like(mixer.dt_proj.weight), np.zeros_like(mixer.x_proj.weight)
    return mixer._replace(
        x_proj=mixer.x_proj._replace(weight=parts, bias=mixer.x_proj.bias if bias is None else bias),
        dt_proj=mixer.dt_proj._replace(weight=low),
    )


class WithoutSelection(Labelled):
    """The same task for a model whose selection is 0 and stays 0."""

    def loss(self, params, batch, *, rng):
        out, backward = super().loss(params, batch, rng=rng)
        return out, lambda dloss: each_mixer(backward(dloss), without_selection)


def gates_of(params, ids):
    """For each block delta, (batch, positions, d_inner), and how strongly a unit of input is written, (batch, positions)."""
    hidden, found = params.embedding.weight[ids], []
    for block in params.blocks:
        mixer = block.mixer
        (d_inner, d_state), dt_rank = mixer.A_log.shape, mixer.dt_proj.weight.shape[0]
        inner = linear(mixer.in_proj, rms_norm(block.mixer_norm, hidden)[0])[0][..., :d_inner]
        low, B, _ = np.split(linear(mixer.x_proj, silu(causal_convolution(mixer.conv, inner)[0])[0])[0], [dt_rank, dt_rank + d_state], axis=-1)
        delta = softplus(linear(mixer.dt_proj, low)[0])[0]
        found.append((delta, delta.mean(-1) * np.linalg.norm(B, axis=-1)))
        hidden, _ = transformer_block(block, hidden, mixer=lambda p, x, bias, mask: mamba(p, x), channel=feed_forward, norm=rms_norm)
    return found


def selective_copying_section():
    trained, num_tokens, kinds = 16, 4, 8
    steps, rows_tested = (10, 16) if chapter.quick else (650, 512)
    lengths, guessing = (trained, 2 * trained, 4 * trained), 1 / (kinds - 2)
    config = model_with("mamba", vocabulary_size=kinds, context=lengths[-1] + num_tokens, d_state=8)
    model = partial(language_model, config=config)
    task = partial(selective_copying, num_tokens=num_tokens, vocabulary_size=kinds)
    found, fitted = {}, {}
    for name, selects in (("selective", True), ("time-invariant", False)):
        rng = chapter.rng()
        params, kind = init_language_model(rng, config, std=config.d_model**-0.5), Labelled
        if not selects:
            draw, kind = np.random.default_rng([chapter.seed, 1]), WithoutSelection
            params = each_mixer(params, lambda m: without_selection(m, draw.standard_normal(m.x_proj.weight.shape[1], np.float32)))
        learned = kind(on_ids(model), lambda r: task(r, batch_size=16, length=trained))
        fitted[name] = fit(params, learned, steps=steps, peak=1e-2, rng=rng, progress=bar(f"copying, {name}"))
        found[name] = []
        for length in lengths:
            ids, targets = task(np.random.default_rng([chapter.seed, length]), batch_size=rows_tested, length=length)
            found[name].append(accuracy(model(fitted[name], ids=ids)[0], targets))
    chapter.table(
        "selective_copying", ["Mamba", *(f"length {length}" for length in lengths)],
        [*([name, *values] for name, values in found.items()), ["guessing", *[guessing] * len(lengths)]],
    )  # fmt: skip
    with chapter.figure("selective_copying", size=(4.6, 2.8)) as (_, ax):
        for name, values in found.items():
            ax.semilogx(lengths, values, marker="o", base=2, label=name)
        ax.axhline(guessing, linestyle=":", color="#808080")
        ax.text(lengths[-1], guessing + 0.02, "guessing", ha="right")
        ax.set(xlabel=f"length in testing (trained at {trained})", ylabel="tokens given back right", ylim=(0, 1.03))
        ax.set_xticks(lengths, lengths)
        ax.legend(loc=(0.02, 0.22))
    selective, invariant = found.values()
    for name, values in (("selective", selective), ("invariant", invariant)):
        chapter.value(f"copying.{name}", {f"at_{length}": 100 * value for length, value in zip(lengths, values, strict=True)})
    chapter.value("copying.guessing", 100 * guessing)
    chapter.value("copying.steps", steps)
    chapter.value("copying.parameters", trees.count_parameters(fitted["selective"]))
    chapter.claim(
        "A system that cannot choose does not learn to copy selectively",
        paper="Gu and Dao 2023, table 1: S4 without selection 18.3 % at length 4,096, S6 97.0 %, Mamba 99.8 %",
        expect=f"the same Mamba with constant Δ, B and C (gate and convolution kept) behind at every length; at {lengths[-1]} below 30 %, where "
        f"guessing has {100 * guessing:.0f} %, and the selective one above 50 %",
        measured=f"trained at {trained}, tested at {', '.join(map(str, lengths))}: {', '.join(f'{100 * v:.0f}' for v in selective)} % against "
        f"{', '.join(f'{100 * v:.0f}' for v in invariant)} %",
        holds=all(a > b for a, b in zip(selective, invariant, strict=True)) and selective[-1] > 0.5 and invariant[-1] < 0.3,
        full_only=True,
    )
    gates_figure(fitted["selective"], task(np.random.default_rng([chapter.seed, 2]), batch_size=rows_tested, length=trained)[0][:, :trained])


def gates_figure(params, ids):
    """Delta on data against delta on noise, a dot a channel; and what is written in the places after a data token."""
    width, data = params.blocks[0].mixer.conv.weight.shape[1], ids != NOISE
    since = np.full(ids.shape, width)                        # places since the last data token, as far as the convolution sees
    for back in reversed(range(width)):
        since[:, back:][data[:, : ids.shape[1] - back]] = back
    quiet = since == width
    ratios = []
    with chapter.figure("gates", size=(7.2, 3), ncols=2) as (_, (steps_ax, write_ax)):
        for layer, (delta, write) in enumerate(gates_of(params, ids), start=1):
            on_noise, on_data = delta[quiet].mean(0), delta[data].mean(0)
            ratios.append(on_data / on_noise)
            steps_ax.loglog(on_noise, on_data, "o", markersize=3, label=f"layer {layer}")
            write_ax.plot([write[since == place].mean() / write[quiet].mean() for place in range(width)], marker="o", label=f"layer {layer}")
        low, high = steps_ax.get_xlim()
        steps_ax.plot([low, high], [low, high], linestyle=":", color="#808080")
        steps_ax.set(xlabel="step Δ on noise", ylabel="step Δ on data", title="a dot a channel")
        steps_ax.legend()
        write_ax.axhline(1, linestyle=":", color="#808080")
        write_ax.set(xlabel="places since the last data token", title="Δ ‖B‖, as a multiple of noise", xticks=range(width), ylim=(0, None))
    middles = [float(np.median(ratio)) for ratio in ratios]
    every = np.concatenate(ratios)
    chapter.value("gates.middle", {"first": middles[0], "second": middles[1]})
    chapter.value("gates.channels", len(every))
    chapter.value("gates.wider", int((every > 1.5).sum()))
    chapter.value("gates.narrower", int((every < 1 / 1.5).sum()))
    chapter.claim(
        "The step is long on data and short on noise",
        paper="Gu and Dao 2023, section 3.5.2: a large Δ resets the state and takes the input in, a small one lets it pass by",
        expect="in each layer half of the channels with a step that is at least 1.5 times as long on data",
        measured=f"middle ratio {middles[0]:.2f} in the first layer, {middles[1]:.2f} in the second; of {len(every)} channels {(every > 1.5).sum()} have a "
        f"step more than 1.5 times as long on data, {(every < 1 / 1.5).sum()} as much shorter",
        holds=min(middles) > 1.5,
        toy_scale="B selects as well as Δ, each channel has a sign of its own, and how the work is shared depends on the seed",
        full_only=True,
    )


selective_copying_section()


# %% Induction heads: trained at 64, read up to 1,024
def induction_section():
    trained, kinds = 64, 8
    lengths = (16, 64, 128) if chapter.quick else (64, 128, 256, 512, 1024)
    guessing = 1 / (kinds - 1)
    runs = {                                                 # attention needs more: it gets five times the examples
        "Mamba": (model_with("mamba", vocabulary_size=kinds, context=lengths[-1], d_state=8), 220, 8),
        "attention, RoPE": (model_with("multi_head_attention", vocabulary_size=kinds, context=lengths[-1], position="rope"), 600, 16),
    }
    found = {}
    for name, (config, steps, batch_size) in runs.items():
        rng, model = chapter.rng(), partial(language_model, config=config)

        def draw(rng, batch_size=batch_size):
            """From one question, which is the task, to eight, which have more to learn from."""
            return induction_heads(
                rng, batch_size=batch_size, length=trained, vocabulary_size=kinds, num_questions=int(2 ** rng.integers(4))
            )  # fmt: skip

        params = fit(
            init_language_model(rng, config, std=config.d_model**-0.5), Labelled(on_ids(model), draw),
            steps=5 if chapter.quick else steps, peak=1e-2, rng=rng, progress=bar(f"induction, {name}"),
        )  # fmt: skip
        found[name] = []
        for length in lengths:
            test = np.random.default_rng([chapter.seed, length])
            batches = [induction_heads(test, batch_size=8, length=length, vocabulary_size=kinds) for _ in range(1 if chapter.quick else 8)]
            found[name].append(float(np.mean([accuracy(model(params, ids=ids)[0], targets) for ids, targets in batches])))
    chapter.table("induction", ["model", *(f"length {length}" for length in lengths)], [[name, *values] for name, values in found.items()])
    with chapter.figure("induction", size=(5, 3)) as (_, ax):
        for name, values in found.items():
            ax.semilogx(lengths, values, marker="o", base=2, label=name)
        ax.axhline(guessing, linestyle=":", color="#808080")
        ax.text(lengths[-1], guessing - 0.02, "guessing", ha="right", va="top")
        ax.set(xlabel=f"length in testing (trained at {trained})", ylabel="answers that are right", ylim=(0, 1.03))
        ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
        ax.minorticks_off()
        ax.legend()
    mamba_found, rope_found = found.values()
    for key, values in (("mamba", mamba_found), ("rope", rope_found)):
        chapter.value(f"induction.{key}", {f"at_{length}": 100 * value for length, value in zip(lengths, values, strict=True)})
    chapter.value("induction.guessing", 100 * guessing)
    for name, key in (("Mamba", "mamba"), ("attention, RoPE", "attention")):
        chapter.value(f"induction.steps.{key}", runs[name][1])
        chapter.value(f"induction.batch.{key}", runs[name][2])
    by_length = ", ".join(f"{length:,}" for length in lengths)
    chapter.claim(
        "Attention loses the thread beyond the length of its training sooner than Mamba",
        paper="Gu and Dao 2023, figure 2 and table 11: trained at 256, no attention works beyond twice its length, Mamba up to a million positions",
        expect=f"after training at {trained} both Mamba and attention with RoPE above 95 % there; beyond twice that Mamba ahead at every length. "
        "Attention gets more updates and larger batches, as it needs them to learn this at all",
        measured=f"at {by_length}: Mamba {', '.join(f'{100 * v:.0f}' for v in mamba_found)} %, with RoPE {', '.join(f'{100 * v:.0f}' for v in rope_found)} %; "
        f"guessing has {100 * guessing:.0f} %",
        holds=min(mamba_found[0], rope_found[0]) > 0.95 and all(a > b for a, b in zip(mamba_found[2:], rope_found[2:], strict=True)),
        toy_scale="with some seeds attention needs more updates than fit here",
        full_only=True,
    )
    chapter.claim(
        "What Mamba has learned works at any length",
        paper="Gu and Dao 2023, table 11: perfect at every length up to a million",
        expect=f"above 95 % up to {lengths[-1]:,} positions, {lengths[-1] // trained} times the length of training",
        measured=f"{100 * mamba_found[-1]:.0f} % at {lengths[-1]:,}",
        holds=min(mamba_found) > 0.95,
        toy_scale=f"{runs['Mamba'][1]} updates, the paper has 200,000; a state that fades hardly at all needs rates near 0",
        full_only=True,
    )


induction_section()


# %% Real text: bits a character beside attention
def bytes_of(state):
    """What a decoding state of one block takes."""
    return state.bytes if hasattr(state, "bytes") else sum(leaf.nbytes for _, leaf in trees.leaves(state))


def text_section():
    context, d_model = 64, 64
    steps, windows = (5, 8) if chapter.quick else (150, 128)
    corpus = Corpus.load(context=context)
    sized = partial(model_with, vocabulary_size=corpus.vocabulary.size, d_model=d_model)
    mixers = {
        "Mamba": sized("mamba", d_state=8),
        "Mamba-2": sized("mamba2", d_state=16),
        "S4D": sized("s4d"),
        "attention, RoPE": sized("multi_head_attention", position="rope"),
    }
    test_ids, test_targets = next(corpus.evaluation_batches(batch_size=windows, context=context, limit=windows))
    rows, models = [], {}
    for name, config in mixers.items():
        bits = []
        for seed in range(2 if name.startswith("attention") and not chapter.quick else 1):
            rng, model = np.random.default_rng(chapter.seed + seed), partial(language_model, config=config)
            params = fit(
                init_language_model(rng, config, std=0.1), Labelled(on_ids(model), partial(corpus.batch, batch_size=8, context=context)),
                steps=steps, peak=1e-2, rng=rng, progress=bar(f"text, {name}"),
            )  # fmt: skip
            bits.append(float(cross_entropy(model(params, ids=test_ids)[0], targets=test_targets)[0]) / np.log(2))
            models.setdefault(name, params)
        rows.append([name, trees.count_parameters(params), bits[0]])
    spread = abs(bits[0] - bits[-1])                         # attention stands last, with a second seed

    longer, state_rows, worst = 40 if chapter.quick else 256, [], 0.0
    for name, config in mixers.items():
        config, ids, sizes, state, read = replace(config, context=longer), corpus.validation[None, :longer], [], None, []
        for t in range(longer):
            logits, state = language_model_step(models[name], ids[:, t : t + 1], state, config=config)
            read.append(logits)
            sizes.append(sum(bytes_of(block) for block in state.blocks))
        worst = max(worst, float(np.abs(np.concatenate(read, axis=1) - language_model(models[name], ids=ids, config=config)[0]).max()))
        steps_of = partial(language_model_step, models[name], config=config), without_cache(partial(language_model, models[name], config=config))
        written = [list(generate(step, prompt_ids=ids[0, :8], num_tokens=24, rng=chapter.rng(), context=config.context)) for step in steps_of]
        state_rows.append([name, sizes[15] / 1024, sizes[-1] / 1024, written[0] == written[1]])
    chapter.table(
        "text", ["mixer", "parameters", "bits a character", "KiB after 16 tokens", f"after {longer}"],
        [[*row, *state[1:3]] for row, state in zip(rows, state_rows, strict=True)],
    )  # fmt: skip
    (_, _, mamba_bits), (_, _, mamba2_bits), (_, _, s4d_bits), (_, _, attention_bits) = rows
    for key, value in (("mamba", mamba_bits), ("mamba2", mamba2_bits), ("s4d", s4d_bits), ("attention", attention_bits)):
        chapter.value(f"text.bits.{key}", value)
    chapter.value("text.steps", steps)
    chapter.value("text.spread", spread)
    chapter.value("text.longer", longer)
    chapter.value("text.difference", worst)
    chapter.claim(
        "Selective state spaces model text as well as attention",
        paper="Gu and Dao 2023, figure 4, and Dao and Gu 2024, figure 9: as good as a strong Transformer of equal size, and better than earlier SSMs",
        expect="same width, updates, data and seed: Mamba and Mamba-2 at most 0.05 bits above attention, and below S4D, which does not select",
        measured=f"bits a character after {steps} updates: {', '.join(f'{name} {value:.2f}' for name, _, value in rows)}; two seeds of attention differ by {spread:.2f}",
        holds=max(mamba_bits, mamba2_bits) < min(attention_bits + 0.05, s4d_bits),
        toy_scale="few updates on little text, with a context of 64",
        full_only=True,
    )
    fixed = all(before == after for name, before, after, _ in state_rows if not name.startswith("attention"))
    chapter.claim(
        "Text is written from a state that does not grow",
        paper="Gu and Dao 2023, section 4.5: no cache of keys and values, constant time and memory a token",
        expect="logits token by token equal those of the whole text up to float32 rounding; the same text written with the state and without it; "
        "bytes constant, those of attention growing with the text",
        measured=f"largest difference {worst:.0e} on {longer} positions; bytes {'constant' if fixed else 'not constant'}; attention "
        f"{state_rows[-1][1]:.0f} KiB after 16 tokens, {state_rows[-1][2]:.0f} after {longer}",
        holds=worst < 1e-3 and fixed and state_rows[-1][2] > state_rows[-1][1] and all(row[3] for row in state_rows),
    )


text_section()


# %%
if __name__ == "__main__":
    raise SystemExit(chapter.finish())
