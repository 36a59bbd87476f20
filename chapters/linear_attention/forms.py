"""Three ways to compute retention: which is for training, which for writing?

Sun et al. 2023, arXiv:2307.08621, section 2.1 and figure 2: one map with a parallel form, a recurrent one and one in chunks; section 1:
training is parallel, and writing a token costs the same however long the text is. Forward and backward of each form over longer
and longer texts; then one token after as many, by a layer of RetNet from its state and by multi-head attention from its cache.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention_step
from minitransformers.linear_attention.retention import retention
from minitransformers.linear_attention.retention_chunked import retention_chunked
from minitransformers.linear_attention.retention_recurrent import retention_recurrent
from minitransformers.linear_attention.retnet import init_retnet, retnet_step
from minitransformers.reporting import Section, fitted_exponent, lines, shortest_times, ticks_at

section = Section(__file__, __doc__, kind="timed")
FORMS = {"all pairs": retention, "step by step": retention_recurrent, "in chunks": retention_chunked}
HEADS, LENGTHS, WRITTEN, WIDTH = 2, (256, 512, 1024, 2048, 4096), (16, 64, 256, 1024, 4096), 128
STATE, CACHE = "RetNet's state", "attention's cache"


# %%
def forward_and_backward(form, query, key, value, dout):
    return form(query, key, value)[1]((dout, None))


@section.experiment
def experiment(rng):
    for n in LENGTHS[:3] if section.quick else LENGTHS:
        call = [rng.standard_normal((1, HEADS, n, width), np.float32) for width in (32, 32, 64, 64)]
        calls = {name: partial(forward_and_backward, form, *call) for name, form in FORMS.items()}
        for name, seconds in shortest_times(calls, rounds=2 if section.quick else 5).items():
            yield name, n, {"seconds": seconds}
    layers = {
        STATE: partial(retnet_step, init_retnet(rng, WIDTH, num_heads=4), num_heads=4),
        CACHE: partial(multi_head_attention_step, init_multi_head_attention(rng, WIDTH, num_heads=4), num_heads=4),
    }
    text = rng.standard_normal((1, WRITTEN[-1], WIDTH), np.float32)
    for n in WRITTEN[:3] if section.quick else WRITTEN:
        for name, step in layers.items():
            state = None
            for start in range(0, n, 256):                   # a prompt in pieces
                _, state = step(text[:, start : min(start + 256, n)], state)
            kept = state.bytes if name == CACHE else state.state.nbytes
            token = shortest_times({name: partial(step, text[:, :1], state)}, rounds=5 if section.quick else 60)
            yield name, n, {"bytes": kept, "token": token[name]}


# %%
def number(found, measure, curve, x):
    return float(np.ravel(found[measure][curve][x])[0])


def exponents(found):
    """How the time grows with the length, over the longest three."""
    lengths = list(found["seconds"]["all pairs"])[-3:]
    return {name: fitted_exponent(lengths, [number(found, "seconds", name, n) for n in lengths]) for name in FORMS}


def growth(found, curve):
    """By how much the time of a token grows from the shortest text to the longest."""
    first, *_, last = found["token"][curve].values()
    return float(np.ravel(last / first)[0])


@section.claim(
    "The time of all pairs grows with the square of the length, that of the other two with the length",
    paper="Sun et al. 2023, arXiv:2307.08621, table 1: memory and time linear in the length, where all pairs are quadratic",
    measured=lambda found: ", ".join(f"{p:.2f} {name}" for name, p in exponents(found).items()),
)
def powers(found):
    """Exponents over the longest three lengths: above 1.8 for all pairs, between 0.85 and 1.15 for the other two."""
    pairs, *others = exponents(found).values()
    return pairs > 1.8 and all(0.85 < p < 1.15 for p in others)


@section.claim(
    "For training, chunks are quicker than both",
    paper="Sun et al. 2023, arXiv:2307.08621, section 2.1: the parallel form within a chunk, the recurrent one between chunks, to train on long texts",
    measured=lambda found: "; ".join(f"at {n:,} {', '.join(f'{r:.1f} {name}' for name, r in times(found, n).items())}" for n in LENGTHS[::4]) + " (chunks = 1)",
)
def chunks(found):
    """At every length from 256 on."""
    return all(r > 1 for n in found["seconds"]["in chunks"] for name, r in times(found, n).items() if name != "in chunks")


def times(found, n):
    """The time of each form, that of chunks as 1."""
    return {name: number(found, "seconds", name, n) / number(found, "seconds", "in chunks", n) for name in FORMS}


@section.claim(
    "What is kept while writing does not grow",
    paper="Sun et al. 2023, arXiv:2307.08621, section 3.4: memory stays the same however long the text is, where a cache grows with it",
    kind="exact",
    measured=lambda found: f"{'; '.join(f'{name} {kib(found, name)}' for name in (STATE, CACHE))} KiB",
)
def kept(found):
    """The state has the same size after any number of tokens; the cache's is proportional to it."""
    per_token = {number(found, "bytes", CACHE, n) / n for n in found["bytes"][CACHE]}
    return len(set(map(float, found["bytes"][STATE].values()))) == 1 and len(per_token) == 1


def kib(found, name):
    return ", ".join(f"{number(found, 'bytes', name, n) / 1024:,.0f} after {n:,}" for n in (min(found["bytes"][name]), max(found["bytes"][name])))


@section.claim(
    "Nor does the time of a token",
    paper="Sun et al. 2023, arXiv:2307.08621, section 3.4 and figure 6: latency does not depend on the length",
    measured=lambda found: ", ".join(f"{name} {growth(found, name):.2f}" for name in (STATE, CACHE)) + " (the longest over the shortest)",
)
def token(found):
    """After the longest text a token takes at most 1.2 times what it takes after the shortest, and with a cache more than 1.5 times."""
    return growth(found, STATE) < 1.2 and growth(found, CACHE) > 1.5


@section.report
def report(found):
    rows = [[n, *(float(f"{1e3 * number(found, 'seconds', name, n):.3g}") for name in FORMS)] for n in found["seconds"]["in chunks"]]
    section.table("forms", ["positions", *(f"ms, {name}" for name in FORMS)], rows)
    section.values("forms.exponent", dict(zip(("pairs", "steps", "chunks"), exponents(found).values(), strict=True)))
    ratios, last = times(found, rows[-1][0]), max(found["bytes"][STATE])
    section.values("forms", {"longest": rows[-1][0], "pairs": ratios["all pairs"], "steps": ratios["step by step"], "width": WIDTH, "written": last})
    for name, curve in (("state", STATE), ("cache", CACHE)):
        section.values(f"forms.{name}", {"kib": number(found, "bytes", curve, last) / 1024, "growth": growth(found, curve)})


@section.figure("forms", size=(9, 3), ncols=2)
def picture(axes, found):
    milliseconds = {name: {n: 1e3 * t for n, t in of.items()} for name, of in found["seconds"].items()}
    lines(axes[0], milliseconds, xlabel="positions", ylabel="ms, forward and backward", xscale="log", yscale="log")
    lines(axes[1], {name: {n: b / 1024 for n, b in found["bytes"][name].items()} for name in (STATE, CACHE)},
          xlabel="tokens before", ylabel="KiB kept", xscale="log", yscale="log")  # fmt: skip
    for ax, curves in zip(axes, (milliseconds["in chunks"], found["bytes"][STATE]), strict=True):
        ticks_at(ax, list(curves))
        ax.legend()


if __name__ == "__main__":
    section.main()
