"""What a wrong gradient was probably meant to be: the likely mistake, where the numbers alone can tell it."""

from __future__ import annotations

import numpy as np


def shape_cause(own: np.ndarray, numeric: np.ndarray) -> str:
    """Why a gradient of another shape than the argument's may have it."""
    wants = f"its shape is {own.shape}, wants {numeric.shape}"
    if own.ndim >= numeric.ndim:
        extra = own.ndim - numeric.ndim
        grown = tuple(i for i, n in enumerate(own.shape) if i < extra or numeric.shape[i - extra] != n)
        summed = own.sum(axis=grown)
        if summed.size == numeric.size and close(summed.reshape(numeric.shape), numeric):
            return f"{wants}: the sum over the broadcast axis {grown} is missing"
    if own.shape == numeric.shape[::-1] and close(own.T, numeric):
        return f"{wants}: it is transposed"
    return wants


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-5) -> bool:
    """Whether two arrays agree, relative to the largest element of the second."""
    return a.shape == b.shape and bool(np.max(np.abs(a - b), initial=0) <= tolerance * max(np.max(np.abs(b), initial=0), 1e-300))


def value_cause(own: np.ndarray, numeric: np.ndarray, bound: float) -> str:
    """Why a gradient of the right shape may have the wrong values."""
    if not np.all(np.isfinite(own)):
        return "it is not finite"
    if not own.any():
        return "it is zero: is the term missing, or was the argument forgotten?"
    ratio = float(np.sum(own * numeric) / max(np.sum(numeric * numeric), 1e-300))
    if abs(ratio - 1) > 1e-3 and close(own, ratio * numeric):
        if abs(ratio + 1) < 1e-5:
            return "its sign is flipped"
        return f"it is {ratio:.6g} times what it should be: a factor {1 / ratio:.6g} is missing"
    if own.ndim >= 2 and own.shape[-1] == own.shape[-2] and close(own.swapaxes(-1, -2), numeric):
        return "it is transposed"
    for axis in range(own.ndim):
        if own.shape[axis] > 1 and close(own.sum(axis=axis, keepdims=True) * np.ones_like(own), numeric):
            return f"the sum over the broadcast axis {axis} is missing"
        if own.shape[axis] > 1:
            difference = own - numeric
            if np.ptp(difference, axis=axis).max() <= 1e-5 * np.abs(difference).max():
                return f"it is off by a number that is the same along axis {axis}: a sum or a mean over that axis is missing"
    wrong = np.abs(own - numeric) > bound * max(np.max(np.abs(numeric)), 1e-300)
    return f"{int(wrong.sum())} of {wrong.size} elements are wrong" + (": a term is missing or extra" if wrong.all() else "")
