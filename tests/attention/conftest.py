"""What the tests of attention share."""

import sys

import pytest

from minitransformers.attention.scaled_dot_product_attention_fast import scaled_dot_product_attention_fast


@pytest.fixture(params=["few queries", "many queries"])
def few_or_many_queries(request, monkeypatch):
    """Tests have few queries. Where none count as few, scores lie in memory as those of long texts do."""
    if request.param == "many queries":
        monkeypatch.setattr(sys.modules[scaled_dot_product_attention_fast.__module__], "_FEW", 0)
