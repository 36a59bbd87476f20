"""What all tests share."""

import os

import pytest

# The arrays here are small and the workers share the cores: one thread each is faster, and sums come in the same order.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """``pytest -n 2`` keeps groups of tests together."""
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadgroup"


def pytest_collection_modifyitems(config, items):
    """What needs the built site or the browser stays on one worker, so that it is built once and one browser starts."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if "site" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group("site"))
