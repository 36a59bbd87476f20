"""What every concept stands on: the contract, its proof, trees of parameters and the catalogue. It knows no concept."""

from minitransformers.foundation.contract import bad, concept, example, invalid, positive_number, trusted, whole_number
from minitransformers.foundation.gradients import assert_gradients, check_gradients

__all__ = [
    "assert_gradients", "bad", "check_gradients", "concept", "example", "invalid", "positive_number", "trusted", "whole_number",
]  # fmt: skip
