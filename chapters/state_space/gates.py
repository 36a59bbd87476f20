"""What does Mamba do with its step, when it copies some tokens and passes others by?

Gu and Dao 2023 (Mamba), arXiv:2312.00752, section 3.5.2, read the step as a gate: a long one resets the state and takes the input in, a
short one lets it pass by. Four tokens stand at random places among noise and are to be given back in order. A Mamba of two layers learns
it; then its steps on data are set beside those on noise that its convolution cannot tell from noise alone. And what is written into the
state, the step times the length of B, is followed over the places after data.
"""

# %%
import numpy as np

import minitransformers as mt
from minitransformers.reporting import Section, along, lines, nats
from minitransformers.training.fit import fit
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.synthetic import NOISE, selective_copying
from minitransformers.training.task import Labelled, on_ids
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LENGTH, TOKENS, KINDS, WIDTH, STEPS, LONGER = 16, 4, 8, 32, 500, 1.5
MAMBA, LAYERS = "selective", ("layer 1", "layer 2")
config = mt.LanguageModelConfig(
    KINDS, context=LENGTH + TOKENS, d_model=WIDTH, num_layers=len(LAYERS), mixer="mamba", position="none", norm="rms_norm",
    options={"mixer": {"d_state": 8}, "channel": {"d_hidden": 32}},
)  # fmt: skip


# %%
@on_ids
def model(params, *, ids):
    return mt.language_model(params, ids=ids, config=config)


def draw(rng, *, rows=16):
    return selective_copying(rng, batch_size=rows, length=LENGTH, num_tokens=TOKENS, vocabulary_size=KINDS)


def trained(rng, *, rate, steps=STEPS):
    params = mt.init_language_model(rng, config, std=WIDTH**-0.5)
    return fit(params, Labelled(model, draw), steps=5 if section.quick else steps, peak=rate, rng=rng)


def gates_of(params, ids):
    """For each block the steps, (batch, positions, d_inner), and how much of a unit of input is written, (batch, positions)."""
    hidden, found = params.embedding.weight[ids], []

    def watched(u, delta, A, B, *more):
        found.append((delta, delta.mean(-1) * np.linalg.norm(B[..., 0, :], axis=-1)))
        return mt.selective_scan_blocks(u, delta, A, B, *more)

    for block in params.blocks:
        hidden, _ = mt.transformer_block(
            block, hidden, mixer=lambda p, x, bias, mask: mt.mamba(p, x, scan=watched), channel=mt.feed_forward, norm=mt.rms_norm
        )  # fmt: skip
    return found


@section.tuning
def tuning(rng):
    hold_blas()
    keep_freed_memory()                                      # a step of training frees and takes the same arrays again and again
    for rate in (1e-2,) if section.quick else (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2):
        own = np.random.default_rng(rng.integers(2**32))
        params = trained(own, rate=rate, steps=STEPS // 2)
        ids, targets = draw(own, rows=512)
        yield MAMBA, rate, {"loss": nats(model(params, ids)[0], targets)}


@section.experiment
def experiment(rng):
    hold_blas()
    keep_freed_memory()
    params = trained(rng, rate=section.rates[MAMBA])
    ids = draw(rng, rows=8 if section.quick else 512)[0][:, :LENGTH]
    width, data = params.blocks[0].mixer.conv.weight.shape[1], ids != NOISE
    since = np.full(ids.shape, width)                        # places since the last data token, as far as the convolution sees
    for back in reversed(range(width)):
        since[:, back:][data[:, : ids.shape[1] - back]] = back
    for layer, (delta, written) in zip(LAYERS, gates_of(params, ids), strict=True):
        for channel, (on_noise, on_data) in enumerate(zip(delta[since == width].mean(0), delta[data].mean(0), strict=True)):
            yield layer, channel, {"noise": on_noise, "data": on_data}
        for place in range(width):
            yield layer, place, {"written": written[since == place].mean() / written[since == width].mean()}


# %%
def ratios(found, layer):
    """Of each channel, the step on data over the step on noise; (channels, seeds) where there are several seeds."""
    return along(found["data"][layer]) / along(found["noise"][layer])


def told(found, layer):
    return f"{', '.join(f'{r:.2f}' for r in np.atleast_1d(np.median(ratios(found, layer), axis=0)))} in {layer}"


@section.claim(
    "Is the step long on data and short on noise?",
    paper="Gu and Dao 2023, arXiv:2312.00752, section 3.5.2: a large step resets the state and takes the input in, a small one lets it pass by",
    measured=lambda found: "middle ratio " + " and ".join(told(found, layer) for layer in LAYERS),
)
def gated(found):
    """In each layer half of the channels have a step that is at least 1.5 times as long on data."""
    return all(np.median(ratios(found, layer)) >= LONGER for layer in LAYERS)


@section.report
def report(found):
    middle = {name: np.median(ratios(found, layer), axis=0).mean() for name, layer in zip(("first", "second"), LAYERS, strict=True)}
    every = np.concatenate([ratios(found, layer) for layer in LAYERS])
    section.values("gates.middle", middle)
    section.values("gates", {"channels": len(every), "wider": (every > LONGER).sum(0).mean(), "narrower": (every < 1 / LONGER).sum(0).mean()})


@section.figure("gates", size=(7.2, 3), ncols=2)
def picture(axes, found):
    """Of the first seed: a dot a channel; and of all seeds what is written after data."""
    steps, writes = axes
    for layer in LAYERS:
        noise, data = (along(found[measure][layer]) for measure in ("noise", "data"))
        steps.loglog(noise.T[0], data.T[0], "o", markersize=3, label=layer)
    low, high = steps.get_xlim()
    steps.plot([low, high], [low, high], linestyle=":", color="#808080")
    steps.set(xlabel="step Δ on noise", ylabel="step Δ on data", title="a dot a channel, first seed")
    steps.legend()
    lines(writes, found["written"], xlabel="places since the last data token", title="Δ ‖B‖, as a multiple of noise", ylim=(0, None))
    writes.axhline(1, linestyle=":", color="#808080")
    writes.set_xticks(list(found["written"][LAYERS[0]]))


if __name__ == "__main__":
    section.main()
