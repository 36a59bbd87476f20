"""What is compared: for each case two makers of a call, ours and theirs, with the same shapes, weights and dtype."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

SMALL = {"vocabulary_size": 65, "context": 64, "d_model": 128, "num_layers": 4, "num_heads": 4}
WIDE = {"vocabulary_size": 65, "context": 64, "d_model": 768, "num_layers": 12, "num_heads": 12}


def _data(config: dict[str, int], batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    shape = (batch, config["context"])
    return rng.integers(config["vocabulary_size"], size=shape), rng.integers(config["vocabulary_size"], size=shape)


def our_training_step(sizes: dict[str, int], batch: int, threads: int = 1) -> Callable[[], Any]:
    """Forward, backward, clipping and AdamW, as the training loop runs them."""
    import functools

    from minitransformers.models.workbench.configuration import LanguageModelConfig
    from minitransformers.models.workbench.language_model import init_language_model, language_model
    from minitransformers.training.memory import keep_freed_memory
    from minitransformers.training.task import Labelled, on_ids
    from minitransformers.training.update import Learner

    keep_freed_memory()
    config = LanguageModelConfig(**sizes)
    learner = Learner(init_language_model(np.random.default_rng(0), config), weight_decay=0.1)
    batch_of_ids, rng = _data(sizes, batch), np.random.default_rng(0)
    task = Labelled(on_ids(functools.partial(language_model, config=config)), lambda rng: batch_of_ids)

    def step() -> float:
        settings = {"learning_rate": 1e-3, "clip": 1.0, "micro_batches": threads, "threads": threads}
        return learner.update(task, batch=batch_of_ids, rng=rng, **settings)[0]

    return step


def torch_model(sizes: dict[str, int]) -> Any:
    """The same GPT-2 in eager PyTorch, written with the library's own fused parts."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(2)
    width, heads = sizes["d_model"], sizes["num_heads"]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.packed, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            b, n, _ = x.shape
            q, k, v = (t.view(b, n, heads, -1).transpose(1, 2) for t in self.packed(self.ln_1(x)).split(width, dim=2))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.output(mixed.transpose(1, 2).reshape(b, n, width))
            return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(sizes["vocabulary_size"], width)
            self.place = nn.Embedding(sizes["context"], width)
            self.blocks = nn.ModuleList([Block() for _ in range(sizes["num_layers"])])
            self.norm = nn.LayerNorm(width)

        def forward(self, ids: Any) -> Any:
            x = self.token(ids) + self.place.weight[: ids.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.token.weight.T

    torch.manual_seed(0)
    model = Model()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    return model


def torch_training_step(sizes: dict[str, int], batch: int) -> Callable[[], Any]:
    import torch

    model = torch_model(sizes)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=1e-3)
    ids, targets = map(torch.tensor, _data(sizes, batch))

    def step() -> float:
        logits = model(ids)
        loss = torch.nn.functional.cross_entropy(logits.view(-1, sizes["vocabulary_size"]), targets.view(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def autograd_forward_and_backward() -> Callable[[], Any]:
    """The same model by tracing: plain NumPy forward, HIPS autograd's backward; no optimiser."""
    import autograd
    import autograd.numpy as anp

    from minitransformers import trees
    from minitransformers.models.workbench.configuration import LanguageModelConfig
    from minitransformers.models.workbench.language_model import init_language_model

    config = LanguageModelConfig(**SMALL)
    params = init_language_model(np.random.default_rng(0), config)
    leaves = [leaf for _, leaf in trees.leaves(params)]
    ids, targets = _data(SMALL, 12)
    batch, length = ids.shape
    allowed = np.tril(np.ones((length, length), bool))
    heads = config.num_heads

    def norm(p: Any, x: Any) -> Any:
        centred = x - anp.mean(x, axis=-1, keepdims=True)
        return p.gain * centred / anp.sqrt(anp.mean(centred * centred, axis=-1, keepdims=True) + 1e-5) + p.bias

    def attention(p: Any, x: Any) -> Any:
        q, k, v = (
            anp.transpose(anp.reshape(x @ part.weight + part.bias, (batch, length, heads, -1)), (0, 2, 1, 3))
            for part in (p.query, p.key, p.value)
        )
        scores = anp.where(allowed, q @ anp.swapaxes(k, -1, -2) * float(q.shape[-1]) ** -0.5, -np.inf)
        weights = anp.exp(scores - anp.max(scores, axis=-1, keepdims=True))
        mixed = (weights / anp.sum(weights, axis=-1, keepdims=True)) @ v
        return anp.reshape(anp.transpose(mixed, (0, 2, 1, 3)), (batch, length, -1)) @ p.output.weight + p.output.bias

    def loss(values: list) -> Any:
        p = trees.unflatten(params, values)
        x = p.embedding.weight[ids] + p.position.table[:length]
        for block in p.blocks:
            x = x + attention(block.mixer, norm(block.mixer_norm, x))
            h = norm(block.channel_norm, x) @ block.channel.up.weight + block.channel.up.bias
            h = 0.5 * h * (1 + anp.tanh(0.7978845608 * (h + 0.044715 * h * h * h)))
            x = x + h @ block.channel.down.weight + block.channel.down.bias
        logits = norm(p.final_norm, x) @ anp.transpose(p.embedding.weight)
        top = logits - anp.max(logits, axis=-1, keepdims=True)
        chosen = anp.reshape(top, (-1, config.vocabulary_size))[np.arange(ids.size), targets.ravel()]
        return anp.mean(anp.log(anp.sum(anp.exp(top), axis=-1))) - anp.mean(chosen)

    gradient = autograd.value_and_grad(loss)
    return lambda: gradient(leaves)


def our_forward_and_backward() -> Callable[[], Any]:
    """Loss and gradients alone."""
    from minitransformers.basics.cross_entropy import cross_entropy
    from minitransformers.models.workbench.configuration import LanguageModelConfig
    from minitransformers.models.workbench.language_model import init_language_model, language_model
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    config = LanguageModelConfig(**SMALL)
    params = init_language_model(np.random.default_rng(0), config)
    ids, targets = _data(SMALL, 12)

    def call() -> Any:
        logits, backward = language_model(params, ids=ids, config=config)
        loss, loss_backward = cross_entropy(logits, targets=targets)
        return loss, backward(loss_backward(np.ones_like(loss)))

    return call


def our_decoding() -> Callable[[], Any]:
    """Sixty tokens, greedily, with the cache."""
    from functools import partial

    from minitransformers.models.decoding import generate
    from minitransformers.models.workbench.configuration import LanguageModelConfig
    from minitransformers.models.workbench.language_model import init_language_model, language_model_step

    config = LanguageModelConfig(**SMALL)
    params = init_language_model(np.random.default_rng(0), config)
    prompt = np.arange(4)
    rng = np.random.default_rng(0)
    step = partial(language_model_step, params, config=config)
    return lambda: list(generate(step, prompt_ids=prompt, num_tokens=60, temperature=0, rng=rng, context=SMALL["context"]))


def torch_decoding() -> Callable[[], Any]:
    """The same in eager PyTorch: keys and values concatenated to the cache, one token at a time."""
    import torch
    from torch.nn import functional as F

    model, heads, width = torch_model(SMALL).eval(), SMALL["num_heads"], SMALL["d_model"]

    def step(ids: Any, cache: list, start: int) -> Any:
        b, n = ids.shape
        x = model.token(ids) + model.place.weight[start : start + n]
        for i, block in enumerate(model.blocks):
            q, k, v = (t.view(b, n, heads, -1).transpose(1, 2) for t in block.packed(block.ln_1(x)).split(width, dim=2))
            if cache[i] is not None:
                k, v = torch.cat([cache[i][0], k], dim=2), torch.cat([cache[i][1], v], dim=2)
            cache[i] = (k, v)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=n > 1)
            x = x + block.output(mixed.transpose(1, 2).reshape(b, n, width))
            x = x + block.down(F.gelu(block.up(block.ln_2(x)), approximate="tanh"))
        return (model.norm(x) @ model.token.weight.T)[:, -1]

    @torch.no_grad()
    def call() -> list[int]:
        cache: list = [None] * SMALL["num_layers"]
        logits, start, text = step(torch.arange(4)[None], cache, 0), 4, []
        for _ in range(60):
            text.append(int(logits.argmax()))
            if len(text) == 60:
                break
            logits, start = step(torch.tensor([[text[-1]]]), cache, start), start + 1
        return text

    return call


def _importing(module: str) -> Callable[[], Any]:
    return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


CASES: dict[str, dict[str, Any]] = {
    "training_step": {
        "what": "a training step of 4 layers, width 128, 12 x 64 tokens, against eager PyTorch",
        "ours": lambda: our_training_step(SMALL, 12),
        "theirs": lambda: torch_training_step(SMALL, 12),
    },
    "parallel_step": {
        "what": "the same step, two halves of the batch side by side, against eager PyTorch",
        "ours": lambda: our_training_step(SMALL, 12, threads=2),
        "theirs": lambda: torch_training_step(SMALL, 12),
    },
    "wide_step": {
        "what": "a training step of 12 layers, width 768, 2 x 64 tokens, against eager PyTorch",
        "ours": lambda: our_training_step(WIDE, 2),
        "theirs": lambda: torch_training_step(WIDE, 2),
    },
    "decode": {
        "what": "sixty tokens with a cache, width 128, against eager PyTorch",
        "ours": our_decoding,
        "theirs": torch_decoding,
    },
    "autograd": {
        "what": "loss and gradients of the small model, against HIPS autograd",
        "ours": our_forward_and_backward,
        "theirs": autograd_forward_and_backward,
    },
    "import": {
        "what": "import minitransformers, against import numpy",
        "ours": lambda: _importing("minitransformers"),
        "theirs": lambda: _importing("numpy"),
    },
}


def attention_call(weighting: str | None = None, rotated: bool = False) -> Callable[[], Any]:
    """Forward and backward of one attention: 4 heads, 512 positions, width 64, causal, float32."""
    from minitransformers import catalogue
    from minitransformers.attention.masks import causal_mask
    from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
    from minitransformers.positional.rope import rope
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((4, 512, 64), np.float32) for _ in range(4))
    function = None if weighting is None else catalogue.find(weighting, role="weighting").function

    def call() -> Any:
        if rotated:
            (query, unrotate_query), (key, unrotate_key) = rope(q), rope(k)
        else:
            query, key = q, k
        _, backward = scaled_dot_product_attention(query, key, v, mask=causal_mask(512), weighting=function)
        dq, dk, *rest = backward(dout)
        return (unrotate_query(dq), unrotate_key(dk), *rest) if rotated else (dq, dk, *rest)

    return call


def kernel_call() -> Callable[[], Any]:
    """The same for Gaussian-kernel attention, which makes its own scores."""
    from minitransformers.attention.gaussian_kernel_attention import gaussian_kernel_attention
    from minitransformers.attention.masks import causal_mask
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((4, 512, 64), np.float32) for _ in range(4))
    return lambda: gaussian_kernel_attention(q, k, v, mask=causal_mask(512))[1](dout)


def _weighting_cases() -> dict[str, dict[str, Any]]:
    names = [
        "softmax_off_by_one", "sigmoid_attention", "relu_attention", "sparsemax", "scalable_softmax", "polynomial_attention",
    ]  # fmt: skip
    return {
        name: {
            "what": f"{name} in attention (4 heads, 512 positions, width 64), against softmax in the same",
            "ours": lambda name=name: attention_call(name),
            "theirs": attention_call,
        }
        for name in names
    }


CASES |= _weighting_cases()
CASES["gaussian_kernel_attention"] = {
    "what": "gaussian_kernel_attention (4 heads, 512 positions, width 64), against softmax in attention",
    "ours": kernel_call,
    "theirs": attention_call,
}
CASES["rope"] = {
    "what": "attention with RoPE, against the same without",
    "ours": lambda: attention_call(rotated=True),
    "theirs": attention_call,
}
# With two threads RoPE reads what the other core has just written. Where the two share no cache, that costs more than the turn.
CASES["rope_one_thread"] = {**CASES["rope"], "what": "the same with one thread", "threads": 1}


def _scan_inputs(length: int) -> dict[str, np.ndarray]:
    """Batch 2, 128 channels of 16 states, float32."""
    rng = np.random.default_rng(0)
    rows, states = (2, length, 128), (2, length, 16)
    u, z, B, C, dout = (rng.standard_normal(shape, np.float32) for shape in (rows, rows, states, states, rows))
    delta = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), rows)).astype(np.float32)
    A = -np.tile(np.arange(1, 17, dtype=np.float32), (128, 1))
    return {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": np.ones(128, np.float32), "z": z, "dout": dout}


def our_selective_scan(length: int = 2048) -> Callable[[], Any]:
    """Forward and backward of the scan in blocks, with skip and gate."""
    from minitransformers.state_space.selective_scan_blocks import selective_scan_blocks
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    u, delta, A, B, C, D, z, dout = _scan_inputs(length).values()
    B, C = B[:, :, None], C[:, :, None]                      # one group

    return lambda: selective_scan_blocks(u, delta, A, B, C, D, z)[1]((dout, None))


def their_selective_scan(length: int = 2048, *, use_mambapy: bool) -> Callable[[], Any]:
    """The same by Hugging Face's Mamba on a CPU: its loop over positions, or mambapy's parallel scan; PyTorch's backward."""
    import torch
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    torch.set_num_threads(2)
    given = _scan_inputs(length)
    turned = {name: a.swapaxes(1, 2).copy() if a.ndim == 3 else a for name, a in given.items()}  # features before positions
    u, delta, A, B, C, D, z = leaves = [torch.tensor(a, requires_grad=True) for name, a in turned.items() if name != "dout"]
    dout = torch.tensor(turned["dout"])

    def run() -> Any:
        for leaf in leaves:
            leaf.grad = None
        mamba_selective_scan(u, delta, A, B, C, D, z, use_mambapy=use_mambapy).backward(dout)
        return [leaf.grad for leaf in leaves]

    return run


CASES |= {
    "selective_scan_hf": {
        # Not longer: the backward of that loop is quadratic in the length, and takes a quarter of a minute at 2048.
        "what": "the selective scan (2 x 512 positions, 128 channels of 16 states), against Hugging Face's loop",
        "ours": lambda: our_selective_scan(512),
        "theirs": lambda: their_selective_scan(512, use_mambapy=False),
    },
    "selective_scan_mambapy": {
        "what": "the selective scan (2 x 2048 positions, 128 channels of 16 states), against mambapy's parallel scan",
        "ours": our_selective_scan,
        "theirs": lambda: their_selective_scan(use_mambapy=True),
    },
}


def _ssd_inputs() -> dict[str, np.ndarray]:
    """Batch 2, 2048 positions, 8 heads of 64, one group with a state of 64, float32."""
    rng = np.random.default_rng(0)
    rows, states = (2, 2048, 8, 64), (2, 2048, 1, 64)
    x, B, C, dout = (rng.standard_normal(shape, np.float32) for shape in (rows, states, states, rows))
    delta = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), rows[:3])).astype(np.float32)
    return {"x": x, "delta": delta, "A": -np.arange(1, 9, dtype=np.float32), "B": B, "C": C, "dout": dout}


def our_ssd(core: Callable | None = None) -> Callable[[], Any]:
    """Forward and backward, by the core, or in chunks."""
    from minitransformers.state_space.ssd import ssd
    from minitransformers.state_space.ssd_chunked import ssd_chunked
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    *call, dout = _ssd_inputs().values()

    def run() -> Any:
        (_, last), backward = ssd(*call, core=core or ssd_chunked)
        return backward((dout, np.zeros_like(last)))

    return run


def our_recurrent_ssd() -> Callable[[], Any]:
    """The same by the recurrence."""
    from minitransformers.state_space.ssd_recurrent import ssd_recurrent

    return our_ssd(ssd_recurrent)


def torch_minimal_ssd(chunk: int = 64) -> Callable[[], Any]:
    """The four steps of the paper's listing 1 in eager PyTorch, with its einsums and its chunk; PyTorch's backward."""
    import torch

    torch.set_num_threads(2)
    *call, dout = (torch.tensor(a) for a in _ssd_inputs().values())
    leaves = [leaf.requires_grad_() for leaf in call]

    def segment_sums(a: Any) -> Any:
        size = a.shape[-1]
        low = torch.ones(size, size, dtype=torch.bool)
        repeated = a[..., :, None].expand(*a.shape, size).masked_fill(~low.tril(-1), 0)
        return repeated.cumsum(-2).masked_fill(~low.tril(0), -torch.inf)

    def forward(x: Any, delta: Any, A: Any, B: Any, C: Any) -> Any:
        batch, n, heads, _ = x.shape
        x, B, C = (a.reshape(batch, n // chunk, chunk, *a.shape[2:]) for a in (x * delta[..., None], B, C))
        decay = (delta * A).reshape(batch, n // chunk, chunk, heads).permute(0, 3, 1, 2)
        running = decay.cumsum(-1)
        within = torch.einsum("bclgn,bcsgn,bhcls,bcshp->bclhp", C, B, segment_sums(decay).exp(), x)
        states = torch.einsum("bclgn,bhcl,bclhp->bcghpn", B, (running[..., -1:] - running).exp(), x)
        states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
        between = segment_sums(torch.nn.functional.pad(running[..., -1], (1, 0))).exp()
        before = torch.einsum("bhzc,bcghpn->bzghpn", between, states)[:, :-1]
        read = torch.einsum("bclgn,bcghpn,bhcl->bclhp", C, before, running.exp())
        return (within + read).reshape(batch, n, heads, -1)

    return lambda: torch.autograd.grad(forward(*leaves), leaves, dout)


CASES |= {
    "ssd_recurrent": {
        "what": "SSD in chunks (2 x 2048 positions, 8 heads of 64, state 64), against its recurrent form",
        "ours": our_ssd,
        "theirs": our_recurrent_ssd,
    },
    "ssd_minimal": {
        "what": "SSD in chunks (2 x 2048 positions, 8 heads of 64, state 64), against the published minimal code in eager PyTorch",
        "ours": our_ssd,
        "theirs": torch_minimal_ssd,
    },
}


def _s4d_inputs() -> tuple[Any, np.ndarray, np.ndarray]:
    """Batch 2, 2048 positions, 128 channels of 64 numbers of state, float32."""
    from minitransformers.state_space.s4d import init_s4d

    rng = np.random.default_rng(0)
    x, dout = (rng.standard_normal((2, 2048, 128), np.float32) for _ in range(2))
    return init_s4d(rng, 128), x, dout


def our_s4d() -> Callable[[], Any]:
    """Forward and backward as a convolution."""
    from minitransformers.state_space.s4d import s4d
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    params, x, dout = _s4d_inputs()
    return lambda: s4d(params, x)[1](dout)


def torch_s4d() -> Callable[[], Any]:
    """The authors' formula in eager PyTorch: a table of all powers, its sum, and a convolution by FFT."""
    import torch

    torch.set_num_threads(2)
    params, *arrays = _s4d_inputs()
    log_step, log_A_real, A_imag, C, D, x, dout = (torch.tensor(a) for a in (*params, *arrays))
    leaves = [leaf.requires_grad_() for leaf in (log_step, log_A_real, A_imag, C, D, x)]
    length = x.shape[1]

    def forward() -> Any:
        A = -torch.exp(log_A_real) + 1j * A_imag
        lam = A * torch.exp(log_step)[:, None]
        table = torch.exp(lam[..., None] * torch.arange(length))
        kernel = 2 * torch.einsum("hn,hnl->hl", torch.view_as_complex(C) * (torch.exp(lam) - 1) / A, table).real
        spectrum = torch.fft.rfft(x.transpose(-1, -2), n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[..., :length].transpose(-1, -2) + D * x

    return lambda: torch.autograd.grad(forward(), leaves, dout)


def hybrid_call(name: str) -> Callable[[], Any]:
    """Forward and backward of a mixer of 8 heads: 2048 positions, width 128."""
    from minitransformers.foundation import catalogue
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    rng, entry = np.random.default_rng(0), catalogue.find(name, role="mixer")
    params = entry.init(rng, 128, num_heads=8)
    x, dout = (rng.standard_normal((1, 2048, 128), np.float32) for _ in range(2))
    return lambda: entry.function(params, x, num_heads=8)[1](dout)


CASES |= {
    "s4d": {
        "what": "S4D (2 x 2048 positions, 128 channels, state 64), against its authors' formula in eager PyTorch",
        "ours": our_s4d,
        "theirs": torch_s4d,
    },
    "bmojo": {
        "what": "B'MOJO (window 16, memory 16; 2048 positions, width 128, 8 heads), against full attention",
        "ours": lambda: hybrid_call("bmojo"),
        "theirs": lambda: hybrid_call("multi_head_attention"),
    },
}


def _linear_attention_inputs() -> list[np.ndarray]:
    """Batch 2, 8 heads of 64, 2048 positions, float32: query, key, value and dout."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, 8, 2048, 64), np.float32) for _ in range(4)]


def our_linear_attention(form: str = "linear_attention_chunked", **config: Any) -> Callable[[], Any]:
    """Forward and backward of causal linear attention with elu + 1."""
    from minitransformers.foundation import catalogue
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    *call, dout = _linear_attention_inputs()
    function = catalogue.find(form, role="recurrence").function
    return lambda: function(None, *call, **config)[1]((dout, None))


def torch_linear_attention(chunk: int = 64) -> Callable[[], Any]:
    """The same formula in the same chunks in eager PyTorch, all chunks at once; PyTorch's backward."""
    import torch

    torch.set_num_threads(2)
    *call, dout = (torch.tensor(a) for a in _linear_attention_inputs())
    leaves = [leaf.requires_grad_() for leaf in call]

    def forward(query: Any, key: Any, value: Any) -> Any:
        both = torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)
        features = (torch.nn.functional.elu(x) + 1 for x in (query, key))
        q, k, v = (a.unflatten(-2, (-1, chunk)) for a in (*features, both))
        states = (k.transpose(-1, -2) @ v).cumsum(-3)
        before = torch.cat([torch.zeros_like(states[..., :1, :, :]), states[..., :-1, :, :]], dim=-3)
        sums = ((q @ k.transpose(-1, -2)).tril() @ v + q @ before).flatten(-3, -2)
        return sums[..., :-1] / sums[..., -1:]

    return lambda: torch.autograd.grad(forward(*leaves), leaves, dout)


CASES |= {
    "linear_attention": {
        "what": "linear attention in chunks (2 x 2048 positions, 8 heads of 64), against the same chunks in eager PyTorch",
        "ours": our_linear_attention,
        "theirs": torch_linear_attention,
    },
    "linear_attention_recurrent": {
        "what": "linear attention in chunks (2 x 2048 positions, 8 heads of 64), against its recurrent form",
        "ours": our_linear_attention,
        "theirs": lambda: our_linear_attention("linear_attention_recurrent"),
    },
    "performer": {
        "what": "Performer with 256 features (2 x 2048 positions, 8 heads of 64), against linear attention with elu + 1",
        "ours": lambda: our_linear_attention("performer"),
        "theirs": our_linear_attention,
    },
}


def _retention_inputs() -> tuple[np.ndarray, ...]:
    """Batch 2, 8 heads, 2048 positions, keys 64 and values 128 wide, as a layer cuts them, and a dout; float32."""
    rng = np.random.default_rng(0)
    widths = (64, 64, 128, 128)
    return tuple(rng.standard_normal((2, 2048, 8, width), np.float32).swapaxes(1, 2) for width in widths)


def our_retention() -> Callable[[], Any]:
    """Forward and backward in chunks, with RetNet's decays."""
    from minitransformers.linear_attention.retention_chunked import retention_chunked
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    query, key, value, dout = _retention_inputs()
    return lambda: retention_chunked(query, key, value)[1]((dout, None))


def _in_torch(chunk: int = 128) -> Callable:
    """The same formula in PyTorch, for 8 heads: within all chunks at once, then the states from one to the next. 128 is its fastest chunk."""
    import torch

    torch.set_num_threads(2)
    log_decay = torch.log1p(-(2.0 ** (-5 - torch.arange(8))))[:, None, None, None]
    place = torch.arange(chunk)
    apart = place[:, None] - place
    mask = torch.where(apart >= 0, apart * log_decay, -torch.inf).exp()  # (heads, 1, chunk, chunk)
    carry = ((place[:, None] + 1) * log_decay).exp()
    last, fade = mask[:, :, -1, :, None], carry[:, 0, -1:]

    def forward(query: Any, key: Any, value: Any) -> Any:
        q, k, v = (a.unflatten(2, (-1, chunk)) for a in (query * query.shape[-1] ** -0.5, key, value))  # (batch, heads, chunks, chunk, width)
        written = (last * k).transpose(-1, -2) @ v
        states = [torch.zeros_like(written[:, :, 0])]
        for c in range(q.shape[2] - 1):
            states.append(fade * states[-1] + written[:, :, c])
        return ((q @ k.transpose(-1, -2) * mask) @ v + carry * (q @ torch.stack(states, 2))).flatten(2, 3)

    return forward


def torch_retention() -> Callable[[], Any]:
    """Forward and backward of that."""
    import torch

    *leaves, dout = (torch.tensor(a.swapaxes(1, 2).copy()).transpose(1, 2) for a in _retention_inputs())
    leaves, forward = [leaf.requires_grad_() for leaf in leaves], _in_torch()
    return lambda: torch.autograd.grad(forward(*leaves), leaves, dout)


def _retnet_inputs() -> tuple[Any, np.ndarray, np.ndarray]:
    """2 x 2048 positions, width 256 in 8 heads, values twice as wide, float32."""
    from minitransformers.linear_attention.retnet import init_retnet

    rng = np.random.default_rng(0)
    return init_retnet(rng, 256, num_heads=8), *(rng.standard_normal((2, 2048, 256), np.float32) for _ in range(2))


def our_retnet() -> Callable[[], Any]:
    """Forward and backward of the whole layer."""
    from minitransformers.linear_attention.retnet import retnet
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    params, x, dout = _retnet_inputs()
    return lambda: retnet(params, x, num_heads=8)[1](dout)


def torch_retnet() -> Callable[[], Any]:
    """The same layer in eager PyTorch, with the library's own rotation by complex numbers, layer norm and SiLU."""
    import torch
    from torch.nn import functional as F

    retention = _in_torch()
    params, x, dout = _retnet_inputs()
    x, dout, *maps = (torch.tensor(a) for a in (x, dout, *(part.weight for part in params[:5])))
    leaves = [leaf.requires_grad_() for leaf in (x, *maps)]
    angles = torch.arange(2048, dtype=torch.float64)[:, None] * 10_000 ** -torch.linspace(0, 1, 16, dtype=torch.float64)
    turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)

    def turned(a: Any) -> Any:
        return torch.view_as_real(torch.view_as_complex(a.unflatten(-1, (-1, 2))) * turns).flatten(-2)

    def forward() -> Any:
        query, key, value = ((x @ w).unflatten(-1, (8, -1)).transpose(1, 2) for w in maps[:3])
        heads = retention(turned(query), turned(key), value)
        unit = F.layer_norm(heads.transpose(1, 2), (64,), eps=1e-6).flatten(-2)
        return (F.silu(x @ maps[3]) * unit) @ maps[4]

    return lambda: torch.autograd.grad(forward(), leaves, dout)


def gated_recurrence_call(name: str) -> Callable[[], Any]:
    """Forward and backward in one of the two forms: 2 x 2048 positions, 4 heads, keys 32 and values 64 wide."""
    from minitransformers.foundation import catalogue
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    rng, function = np.random.default_rng(0), catalogue.find(name).function
    widths = (32, 32, 64, 32, 64)
    query, key, value, logits, dout = (rng.standard_normal((2, 2048, 4, width), np.float32).swapaxes(1, 2) for width in widths)
    log_decay = -np.logaddexp(0, -logits) / 16
    return lambda: function(query, key, value, log_decay)[1]((dout, None))


def wkv_call(name: str, *, channels: int) -> Callable[[], Any]:
    """Forward and backward of WKV in one of its two forms: one text of 2048 positions, float32, rates from e^-5 to e^3 as RWKV has them."""
    from minitransformers.foundation import catalogue
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    rng, function = np.random.default_rng(0), catalogue.find(name).function
    decay, bonus = np.exp(np.linspace(-5, 3, channels, dtype=np.float32)), np.zeros(channels, np.float32)
    key, value, dout = (rng.standard_normal((2048, channels), np.float32) for _ in range(3))
    return lambda: function(decay, bonus, key, value)[1]((dout, None))


CASES |= {
    "retention": {
        "what": "retention in chunks (2 x 2048 positions, 8 heads, keys 64, values 128), against the same formula in eager PyTorch",
        "ours": our_retention,
        "theirs": torch_retention,
    },
    "retnet": {
        "what": "RetNet's layer (2 x 2048 positions, width 256, 8 heads), against the same layer in eager PyTorch",
        "ours": our_retnet,
        "theirs": torch_retnet,
    },
    "gated_recurrence": {
        "what": "the gated recurrence in chunks (2 x 2048 positions, 4 heads, keys 32, values 64), against its plain form",
        "ours": lambda: gated_recurrence_call("gated_recurrence_chunked"),
        "theirs": lambda: gated_recurrence_call("gated_recurrence"),
    },
    "wkv": {
        "what": "WKV in chunks (2048 positions, 64 channels), against its plain form",
        "ours": lambda: wkv_call("wkv_chunked", channels=64),
        "theirs": lambda: wkv_call("wkv", channels=64),
    },
    "wkv_wide": {
        "what": "WKV in chunks (2048 positions, 256 channels), against its plain form",
        "ours": lambda: wkv_call("wkv_chunked", channels=256),
        "theirs": lambda: wkv_call("wkv", channels=256),
    },
}


def sparse_core_call(name: str, *, causal: bool = False) -> Callable[[], Any]:
    """Forward and backward of one head of 8192 positions, width 64, float32, by a core of sparse attention or by a dense one."""
    from functools import partial

    from minitransformers.attention.core import causal_attention, softmax_attention
    from minitransformers.sparse_attention.local_global_attention_blocks import local_global_attention_blocks
    from minitransformers.sparse_attention.strided_fast import strided_fast
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    core = {
        "dense": causal_attention if causal else softmax_attention,
        "longformer": partial(local_global_attention_blocks, window=256, global_positions=(0,)),
        "strided": partial(strided_fast, stride=90),
    }[name]
    *arrays, dout = np.random.default_rng(0).standard_normal((4, 1, 8192, 64), np.float32)
    return lambda: core(None, *arrays)[1](dout)


def our_longformer_layer() -> Callable[[], Any]:
    """Forward and backward of Longformer's layer: 4096 positions, width 256, 4 heads, 256 to each side, one global token; float32."""
    from minitransformers.sparse_attention.longformer_attention import init_longformer_attention, longformer_attention
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    rng = np.random.default_rng(0)
    params = init_longformer_attention(rng, 256, num_heads=4)
    x, dout = rng.standard_normal((2, 1, 4096, 256), np.float32)
    return lambda: longformer_attention(params, x, num_heads=4, window=256, global_positions=(0,))[1](dout)


def their_longformer_layer() -> Callable[[], Any]:
    """The same layer of Hugging Face in eager PyTorch."""
    import torch
    from transformers.models.longformer.modeling_longformer import LongformerConfig, LongformerSelfAttention

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LongformerConfig(hidden_size=256, num_attention_heads=4, attention_window=[512], attention_probs_dropout_prob=0.0)
    layer, output = LongformerSelfAttention(config, layer_id=0), torch.nn.Linear(256, 256)
    x, dout = torch.randn(1, 4096, 256, requires_grad=True), torch.randn(1, 4096, 256)
    mask = torch.zeros(1, 4096)
    mask[0, 0] = 10000.0
    leaves = [x, *layer.parameters(), *output.parameters()]

    def call() -> Any:
        (heads,) = layer(x, attention_mask=mask, is_index_masked=mask < 0, is_index_global_attn=mask > 0, is_global_attn=True)
        return torch.autograd.grad(output(heads), leaves, dout)

    return call


CASES |= {
    "longformer": {
        "what": "256 positions to each side and one global column (8192 positions, one head of 64, one thread), against dense attention",
        "ours": lambda: sparse_core_call("longformer"),
        "theirs": lambda: sparse_core_call("dense"),
        "threads": 1,
    },
    "strided": {
        "what": "strided attention by reshaping (stride 90, 8192 positions, one head of 64, one thread), against dense causal attention",
        "ours": lambda: sparse_core_call("strided", causal=True),
        "theirs": lambda: sparse_core_call("dense", causal=True),
        "threads": 1,
    },
    "longformer_attention": {
        "what": "Longformer's layer (4096 positions, width 256, 4 heads, 256 to each side, one global token, one thread), against Hugging Face's",
        "ours": our_longformer_layer,
        "theirs": their_longformer_layer,
        "threads": 1,
    },
}


def exact_core_call(name: str) -> Callable[[], Any]:
    """Forward and backward of one head of 4096 positions, width 64, float32, looking back: in tiles, or with all scores at once."""
    from minitransformers.attention.core import causal_attention
    from minitransformers.efficient.flash_attention import causal_flash_attention
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    core = {"dense": causal_attention, "flash": causal_flash_attention}[name]
    *arrays, dout = np.random.default_rng(0).standard_normal((4, 1, 4096, 64), np.float32)
    return lambda: core(None, *arrays)[1](dout)


def torch_exact_attention() -> Callable[[], Any]:
    """The same by PyTorch's attention, which on a processor is a kernel in tiles as well."""
    import torch

    torch.set_num_threads(1)
    *arrays, dout = map(torch.tensor, np.random.default_rng(0).standard_normal((4, 1, 1, 4096, 64), np.float32))
    leaves = [array.requires_grad_() for array in arrays]

    def call() -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)
        return torch.autograd.grad(out, leaves, dout)

    return call


CASES |= {
    "flash": {
        "what": "attention in tiles (4096 positions, one head of 64, looking back, one thread), against this package's dense attention",
        "ours": lambda: exact_core_call("flash"),
        "theirs": lambda: exact_core_call("dense"),
        "threads": 1,
    },
    "flash_kernel": {
        "what": "attention in tiles (4096 positions, one head of 64, looking back, one thread), against PyTorch's kernel in tiles",
        "ours": lambda: exact_core_call("flash"),
        "theirs": torch_exact_attention,
        "threads": 1,
    },
}


# SmolLM2, 135 million real weights in float32 (minitransformers weights) ----------------------------------------------------

SMOLLM2_PROMPT = np.random.default_rng(0).integers(20, 49_152, size=(1, 256))
NEW_TOKENS = 8


def our_smollm2(decode: bool) -> Callable[[], Any]:
    """A prompt of 256 tokens at once, or eight tokens after it, greedily, with the cache."""
    from functools import partial

    from minitransformers.models.llama import llama_step
    from minitransformers.models.llama_gguf import load_llama_gguf
    from minitransformers.models.published import published_file

    model = load_llama_gguf(published_file("smollm2"))
    step = partial(llama_step, model.params, **model.settings)
    first, past = step(SMOLLM2_PROMPT, None)

    def call() -> Any:
        if not decode:
            return step(SMOLLM2_PROMPT, None)
        logits, state = first, past
        for _ in range(NEW_TOKENS):
            logits, state = step(logits[:, -1:].argmax(-1), state)
        return logits

    return call


def torch_smollm2(decode: bool) -> Callable[[], Any]:
    """The same in eager PyTorch, written with the library's own fused parts, the cache a room that is written to."""
    import torch
    from torch.nn import functional as F

    from minitransformers.models.llama import llama_weights
    from minitransformers.models.llama_gguf import load_llama_gguf
    from minitransformers.models.published import published_file

    torch.set_num_threads(1)
    weights = llama_weights(load_llama_gguf(published_file("smollm2")).params)
    held = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in weights.items()}
    table, room, width = held["model.embed_tokens.weight"], 256 + NEW_TOKENS, 64
    layers = [{name.split(".", 3)[3]: a for name, a in held.items() if name.startswith(f"model.layers.{i}.")} for i in range(30)]
    angle = torch.arange(room)[:, None] * 100_000.0 ** (-torch.arange(0, width, 2) / width)
    cos, sin = (torch.cat([f(angle), f(angle)], dim=-1) for f in (torch.cos, torch.sin))
    caches = [torch.empty(2, 1, 3, room, width) for _ in layers]

    def turned(x: Any, start: int) -> Any:
        a, b = x.chunk(2, dim=-1)
        places = slice(start, start + x.shape[-2])
        return x * cos[places] + torch.cat([-b, a], dim=-1) * sin[places]

    @torch.no_grad()
    def step(ids: Any, start: int) -> Any:
        n = ids.shape[1]
        x = F.embedding(ids, table)
        for layer, cache in zip(layers, caches, strict=True):
            h = F.rms_norm(x, (576,), layer["input_layernorm.weight"], 1e-5)
            q, k, v = (F.linear(h, layer[f"self_attn.{c}_proj.weight"]).view(1, n, -1, width).transpose(1, 2) for c in "qkv")
            cache[0, :, :, start : start + n], cache[1, :, :, start : start + n] = turned(k, start), v
            keys, values = cache[:, :, :, : start + n]
            mixed = F.scaled_dot_product_attention(turned(q, start), keys, values, is_causal=n > 1, enable_gqa=True)
            x = x + F.linear(mixed.transpose(1, 2).reshape(1, n, 576), layer["self_attn.o_proj.weight"])
            h = F.rms_norm(x, (576,), layer["post_attention_layernorm.weight"], 1e-5)
            gate, up = F.linear(h, layer["mlp.gate_proj.weight"]), F.linear(h, layer["mlp.up_proj.weight"])
            x = x + F.linear(F.silu(gate) * up, layer["mlp.down_proj.weight"])
        return F.linear(F.rms_norm(x, (576,), held["model.norm.weight"], 1e-5), table)

    prompt = torch.tensor(SMOLLM2_PROMPT)
    first = step(prompt, 0)

    def call() -> Any:
        if not decode:
            return step(prompt, 0)
        logits = first
        for i in range(NEW_TOKENS):
            logits = step(logits[:, -1:].argmax(-1), 256 + i)
        return logits

    return call


def huggingface_smollm2(decode: bool) -> Callable[[], Any]:
    """The same by Hugging Face's own model and cache."""
    import torch
    import transformers

    from minitransformers.models.llama import llama_weights
    from minitransformers.models.llama_gguf import load_llama_gguf
    from minitransformers.models.published import published_file

    torch.set_num_threads(1)
    weights = llama_weights(load_llama_gguf(published_file("smollm2")).params)
    config = transformers.LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0}, rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=8192,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    held = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in weights.items()}
    model.load_state_dict(held | {"lm_head.weight": held["model.embed_tokens.weight"]}, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.eval()
    prompt = torch.tensor(SMOLLM2_PROMPT)

    @torch.no_grad()
    def start() -> Any:
        return model(prompt, use_cache=True)

    first = start()

    @torch.no_grad()
    def call() -> Any:
        if not decode:
            return start().logits
        logits, past = first.logits, first.past_key_values
        for _ in range(NEW_TOKENS):
            logits = model(logits[:, -1:].argmax(-1), past_key_values=past, use_cache=True).logits
        past.crop(-NEW_TOKENS)
        return logits

    return call


CASES |= {
    "smollm2_decode": {
        "what": "SmolLM2 (135M, float32), eight tokens after 256 with the cache, one thread, against the same formula in eager PyTorch",
        "ours": lambda: our_smollm2(decode=True),
        "theirs": lambda: torch_smollm2(decode=True),
        "threads": 1,
    },
    "smollm2_prefill": {
        "what": "SmolLM2 (135M, float32), a prompt of 256 tokens, one thread, against the same formula in eager PyTorch",
        "ours": lambda: our_smollm2(decode=False),
        "theirs": lambda: torch_smollm2(decode=False),
        "threads": 1,
    },
    "smollm2_decode_library": {
        "what": "SmolLM2 (135M, float32), eight tokens after 256 with the cache, one thread, against Hugging Face's model in eager PyTorch",
        "ours": lambda: our_smollm2(decode=True),
        "theirs": lambda: huggingface_smollm2(decode=True),
        "threads": 1,
    },
    "smollm2_prefill_library": {
        "what": "SmolLM2 (135M, float32), a prompt of 256 tokens, one thread, against Hugging Face's model in eager PyTorch",
        "ours": lambda: our_smollm2(decode=False),
        "theirs": lambda: huggingface_smollm2(decode=False),
        "threads": 1,
    },
}


LLAMA = {"vocabulary": 65, "d_model": 128, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "d_hidden": 344, "tied": True}


def our_llama_step() -> Callable[[], Any]:
    """Forward, backward, clipping and AdamW of a small Llama: 12 texts of 64 tokens."""
    from functools import partial

    from minitransformers.models.llama import init_llama, llama
    from minitransformers.training.memory import keep_freed_memory
    from minitransformers.training.task import Labelled, on_ids
    from minitransformers.training.update import Learner

    keep_freed_memory()
    learner = Learner(init_llama(np.random.default_rng(0), **LLAMA), weight_decay=0.1)
    batch, rng = _data(SMALL, 12), np.random.default_rng(0)
    task = Labelled(on_ids(partial(llama, num_heads=LLAMA["num_heads"])), lambda rng: batch)
    return lambda: learner.update(task, batch=batch, rng=rng, learning_rate=1e-3, clip=1.0)[0]


def torch_llama_step() -> Callable[[], Any]:
    """The same in eager PyTorch, Hugging Face's model."""
    import torch
    import transformers

    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        vocab_size=LLAMA["vocabulary"], hidden_size=LLAMA["d_model"], num_hidden_layers=LLAMA["num_layers"], intermediate_size=LLAMA["d_hidden"],
        num_attention_heads=LLAMA["num_heads"], num_key_value_heads=LLAMA["num_kv_heads"], tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    ids, targets = map(torch.tensor, _data(SMALL, 12))

    def step() -> float:
        loss = torch.nn.functional.cross_entropy(model(ids, use_cache=False).logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


CASES |= {
    "llama_step": {
        "what": "training step of a Llama (4 layers, width 128, 12 x 64 tokens), one thread, against Hugging Face's in eager PyTorch",
        "threads": 1,
        "ours": our_llama_step,
        "theirs": torch_llama_step,
    },
}


def our_dequantize_nf4() -> Callable[[], Any]:
    """A weight of 768 by 768 restored from its codes, float32."""
    from minitransformers.peft.nf4 import dequantize_nf4, quantize_nf4
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    weight = quantize_nf4(np.random.default_rng(0).standard_normal((768, 768), np.float32))
    return lambda: dequantize_nf4(weight)


def product_with_rows(rows: int = 128) -> Callable[[], Any]:
    """So many rows times such a weight."""
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal((size, 768), np.float32) for size in (rows, 768))
    return lambda: x @ weight


CASES |= {
    "dequantize_nf4": {
        "what": "restoring a weight of 768 by 768 from NF4, one thread, against its product with 128 rows",
        "threads": 1,
        "ours": our_dequantize_nf4,
        "theirs": product_with_rows,
    },
}


def _one_map() -> tuple[Any, ...]:
    """2,048 rows, a gradient of theirs, and a map of 768 by 768."""
    from minitransformers.basics.linear import Linear
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, 2048, 768), np.float32)
    return x, dout, Linear(rng.standard_normal((768, 768), np.float32), None)


def our_lora_linear() -> Callable[[], Any]:
    """LoRA of rank 8, forward and backward."""
    from minitransformers.peft.lora_linear import Lora, lora_linear

    x, dout, base = _one_map()
    rng = np.random.default_rng(1)
    params = Lora(rng.standard_normal((768, 8), np.float32), rng.standard_normal((8, 768), np.float32))
    return lambda: lora_linear(params, x, base=base, scale=2.0)[1](dout)


def frozen_linear() -> Callable[[], Any]:
    """The frozen map alone: its output, and the gradient of its input."""
    x, dout, base = _one_map()
    return lambda: (x @ base.weight, dout @ base.weight.T)


CASES |= {
    "lora_linear": {
        "what": "LoRA of rank 8 beside a map of 768 by 768, 2,048 rows, forward and backward, one thread, against the frozen map alone",
        "threads": 1,
        "ours": our_lora_linear,
        "theirs": frozen_linear,
    },
}


def _calibrated_weight() -> tuple[Any, Any]:
    """A weight of 576 by 576, and the gram matrix of 2,048 inputs that are correlated."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2048, 576), np.float32) @ rng.standard_normal((576, 576), np.float32)
    return rng.standard_normal((576, 576), np.float32), x.T @ x


def our_gptq() -> Callable[[], Any]:
    """GPTQ to 4 bits in groups of 64, in blocks of 128."""
    from minitransformers.compression.gptq import gptq_blocked

    weight, gram = _calibrated_weight()
    return lambda: gptq_blocked(weight, gram=gram, bits=4, group=64)


def torch_gptq() -> Callable[[], Any]:
    """The same algorithm in eager PyTorch, float32 but for the algebra in float64, as ours."""
    import torch

    weight, gram = map(torch.from_numpy, _calibrated_weight())

    def run() -> Any:
        hessian = gram.double() + 0.01 * gram.diagonal().double().mean() * torch.eye(576, dtype=torch.float64)
        lower = torch.linalg.cholesky(hessian.flip(0, 1))
        inverse = torch.linalg.inv(lower.flip(0, 1)).float()
        free, codes = weight.clone(), torch.empty(576, 576, dtype=torch.int8)
        for start in range(0, 576, 128):
            behind, errors = min(start + 128, 576), []
            for j in range(start, behind):
                if j % 64 == 0:
                    step = free[j : j + 64].abs().amax(0) / 7
                code = torch.clamp(torch.round(free[j] / step), -7, 7)
                codes[j] = code
                errors.append((free[j] - step * code) / inverse[j, j])
                free[j + 1 : behind] -= torch.outer(inverse[j, j + 1 : behind], errors[-1])
            free[behind:] -= inverse[start:behind, behind:].T @ torch.stack(errors)
        return codes

    return run


CASES |= {
    "gptq": {
        "what": "GPTQ of a weight of 576 by 576, 4 bits in groups of 64, one thread, against the same algorithm in eager PyTorch",
        "threads": 1,
        "ours": our_gptq,
        "theirs": torch_gptq,
    },
}


def _ten_thousand_edges() -> tuple[Any, ...]:
    """1,000 nodes of 128 features in 4 heads, 10 edges to each from nodes by lot, and a gradient."""
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(1000), 10)
    x, dout = rng.standard_normal((2, 1000, 128), np.float32)
    return x, dout, rng.integers(1000, size=10_000), targets


def our_sentence_graph() -> Callable[[], Any]:
    """Graph attention, forward and backward."""
    from minitransformers.long_context.sentence_graph import init_sentence_graph, sentence_graph
    from minitransformers.training.memory import keep_freed_memory

    keep_freed_memory()
    x, dout, sources, targets = _ten_thousand_edges()
    params = init_sentence_graph(np.random.default_rng(1), 128, num_heads=4)
    return lambda: sentence_graph(params, x, sources=sources, targets=targets)[1](dout)


def torch_sentence_graph() -> Callable[[], Any]:
    """The same formula in eager PyTorch: a softmax over the edges of each target, sums by index_add."""
    import torch

    from minitransformers.long_context.sentence_graph import init_sentence_graph

    x, dout, sources, targets = _ten_thousand_edges()
    made = init_sentence_graph(np.random.default_rng(1), 128, num_heads=4)
    leaves = [torch.from_numpy(np.ascontiguousarray(leaf)).requires_grad_() for leaf in (x, made.value.weight, made.target, made.source)]
    sources, targets, gradient = torch.from_numpy(sources), torch.from_numpy(targets), torch.from_numpy(dout)

    def run() -> Any:
        rows, value, target, source = leaves
        z = (rows @ value).reshape(1000, 4, 32)
        scores = torch.nn.functional.leaky_relu((z * target).sum(-1)[targets] + (z * source).sum(-1)[sources], 0.2)
        largest = torch.full((1000, 4), -torch.inf).index_reduce(0, targets, scores.detach(), "amax")
        weights = torch.exp(scores - largest[targets])
        weights = weights / torch.zeros(1000, 4).index_add(0, targets, weights)[targets]
        out = torch.zeros(1000, 4, 32).index_add(0, targets, weights[..., None] * z[sources])
        return torch.autograd.grad(out.reshape(1000, 128), leaves, gradient)

    return run


CASES |= {
    "sentence_graph": {
        "what": "graph attention over 10,000 edges, forward and backward, one thread, against the same formula in eager PyTorch",
        "threads": 1,
        "ours": our_sentence_graph,
        "theirs": torch_sentence_graph,
    },
}
