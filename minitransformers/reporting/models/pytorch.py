"""How a model of Hugging Face's learns from our weights: PyTorch's autograd and AdamW, with the rates, decay and clipping of ``fit``.

Only what calls these functions needs PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import trees
from minitransformers.training.schedule import warmup_cosine


def with_weights(model: Any, weights: Mapping[str, Array]) -> Any:
    """A model with these weights, in their precision; what it may keep besides are its masks and a head that is its table."""
    import torch

    tensors = {key: torch.tensor(array) for key, array in weights.items()}
    model = model.to(next(iter(tensors.values())).dtype)
    absent, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and all(key == "lm_head.weight" or key.endswith((".attn.bias", ".masked_bias")) for key in absent), (absent, unexpected)
    return model


def decaying(params: trees.Tree, named: Callable) -> set[str]:
    """Their names of the weights that ``fit`` decays; named(params) are all weights by their names."""
    marked = set(trees.decayed(params))
    flags = named(trees.unflatten(params, [np.full(leaf.shape, path in marked) for path, leaf in trees.leaves(params)]))
    return {key for key, flag in flags.items() if flag.any()}


def their_losses(
    model: Any, batch: Callable, rng: np.random.Generator, *, steps: int, peak: float, weight_decay: float, decays: set[str]
) -> list[float]:
    """The loss of each update on ``batch(rng) -> ids, targets``."""
    import torch

    sides = [[p for key, p in model.named_parameters() if (key in decays) == side] for side in (True, False)]
    groups = [{"params": side, "weight_decay": decay} for side, decay in zip(sides, (weight_decay, 0.0), strict=True)]
    optimizer, losses = torch.optim.AdamW(groups, lr=peak), []
    for step in range(1, steps + 1):
        ids, targets = (torch.tensor(array) for array in batch(rng))
        loss = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, peak=peak, steps=steps, warmup=round(0.1 * steps))
        optimizer.step()
        losses.append(loss.item())
    return losses
