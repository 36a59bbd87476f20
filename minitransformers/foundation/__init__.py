"""What every concept stands on: the contract, its proof, trees of parameters and the catalogue. It knows no concept."""

from minitransformers.foundation.contract import (
    Backward,
    bad,
    checked,
    concept,
    example,
    invalid,
    procedure,
    slot,
    trusted,
)
from minitransformers.foundation.gradients import assert_gradients, check_gradients
from minitransformers.foundation.ranges import (
    Range,
    above,
    at_least,
    at_most,
    below,
    between,
    finite,
    from_to_below,
    negative,
    positive,
)
from minitransformers.foundation.reparameterize import reparameterize
from minitransformers.foundation.shapes import InvalidArgument

__all__ = [
    "Backward",
    "InvalidArgument",
    "Range",
    "above",
    "assert_gradients",
    "at_least",
    "at_most",
    "bad",
    "below",
    "between",
    "check_gradients",
    "checked",
    "concept",
    "example",
    "finite",
    "from_to_below",
    "invalid",
    "negative",
    "positive",
    "procedure",
    "reparameterize",
    "slot",
    "trusted",
]  # fmt: skip
