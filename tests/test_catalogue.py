"""Every concept in the catalogue against every generic check: no test here is written for a concept by hand."""

import pytest

from minitransformers import catalogue
from minitransformers.foundation import checks


@pytest.mark.parametrize("check", checks.CHECKS)
@pytest.mark.parametrize("name", catalogue.concepts())
def test_concept_passes(name, check):
    outcome = checks.CHECKS[check](catalogue.concepts()[name])
    assert outcome.passed, f"{name}, {check}: {outcome.message}"
