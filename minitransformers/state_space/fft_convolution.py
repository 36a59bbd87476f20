"""Causal convolution through the Fourier transform: every output reads all inputs before it, for the price of a sort.

A product of spectra is a circular convolution. Enough zeros behind the sequence, and what runs round the circle meets only
zeros: the circular one is the plain one. Costs O(n log n) a sequence where the sum written out costs O(n^2).
Source: Cooley and Tukey 1965, Math. Comp. 19, and Stockham 1966 for its use in convolution; in sequence models Gu, Goel
and Re 2021 (S4), arXiv:2111.00396, section 2.4. n is a length with small prime factors, at least positions + taps - 1.

    X = rfft(x, n), K = rfft(kernel, n)                      (1)
    out = irfft(X K, n), its first positions                 (2)
    S = rfft(dout, n)                                        (3)
    dx = irfft(S conj(K), n), its first positions            (4)
    dkernel = irfft(S conj(X), n), its first taps            (5)

The gradient of an input that was broadcast is the sum over the copies, taken of the spectra: one inverse transform.
"""

from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.heads import sum_to
from minitransformers.foundation import Backward, concept, example


@concept(
    title="FFT convolution",
    source="Gu, Goel and Re 2021 (S4), arXiv:2111.00396, section 2.4; Cooley and Tukey 1965",
    example=lambda rng: example(rng.normal(size=(2, 3, 7)), rng.normal(size=(1, 3, 5))),
)
def fft_convolution(x: Float[Array, "*#batch positions"], kernel: Float[Array, "*#batch taps"]) -> tuple[Array, Backward]:
    """out_t = sum over l of kernel_l x_{t-l}, along the last axis; before its start x is zero.

    Leading axes broadcast: a kernel (channels, taps) serves every sequence of x (batch, channels, positions). Taps beyond the
    positions meet nothing and get the gradient 0.
    Returns out (*batch, positions), and backward: dout -> dx, dkernel.
    Raises ValueError when leading axes do not broadcast or an axis is empty.
    """
    # Inside, because the first import takes a tenth of a second. NumPy's transforms are half as fast on many short rows.
    from scipy.fft import irfft, next_fast_len, rfft

    positions, taps = x.shape[-1], kernel.shape[-1]
    n = next_fast_len(positions + taps - 1, real=True)
    X, K = rfft(x, n), rfft(kernel, n)                       # (..., n // 2 + 1)  (1)
    out = irfft(X * K, n)[..., :positions]                   # (2)

    def backward(dout):
        S = rfft(dout, n)                                    # (3)
        dx = irfft(sum_to(S * K.conj(), X.shape), n)[..., :positions]  # (4)
        dkernel = irfft(sum_to(S * X.conj(), K.shape), n)[..., :taps]  # (5)
        return dx, dkernel

    return out, backward
