"""minitransformers: every idea of the Transformer era once, in NumPy, its backward pass beside its forward pass."""

from minitransformers.foundation import assert_gradients, catalogue, check_gradients, trees

__all__ = ["assert_gradients", "catalogue", "check_gradients", "trees"]
__version__ = "0.1.0"
