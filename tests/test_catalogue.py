"""Every entry of the catalogue against every generic check: no test here is written for one of them by hand."""

import pytest

from minitransformers import catalogue
from minitransformers.foundation import checks

CASES = [pytest.param(entry, check, id=f"{name}-{check}") for name, entry in catalogue.entries().items() for check in checks.checks_of(entry)]


@pytest.mark.parametrize(("entry", "check"), CASES)
def test_entry_passes(entry, check):
    outcome = checks.CHECKS[check](entry)
    assert outcome.passed, f"{entry.name}, {check}: {outcome.message}"


@pytest.mark.slow
@pytest.mark.parametrize("name", catalogue.concepts())
def test_every_element_of_every_gradient_by_itself(name):
    report = checks.gradient_report(catalogue.find(name), directions=0)
    assert report.passed, str(report)
