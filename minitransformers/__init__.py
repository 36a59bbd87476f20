"""minitransformers: every idea of the Transformer era once, in NumPy, its backward pass beside its forward pass.

    from minitransformers import check_gradients, init_rms_norm, rms_norm

Every concept and procedure is here, with its parameters' type, its init and its step; what is asked for is imported then,
and nothing before. A chapter's name is the chapter: a concept that has one as well is imported from its own module.
"""

import importlib

__version__ = "0.1.0"


def _read_places() -> dict[str, str]:
    """Each name with its module, from the lines ``from MODULE import NAME as NAME`` of the stub that type checkers read."""
    with open(f"{__path__[0]}/__init__.pyi", encoding="utf-8") as stub:
        return {line.split()[3]: line.split()[1] for line in stub if line.startswith("from ")}


_places = _read_places()
__all__ = list(_places)


def __getattr__(name: str):
    if name not in _places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_hint(name)}", name=name)
    value = getattr(importlib.import_module(_places[name]), name)
    globals()[name] = value  # found without asking here the next time
    return value


def _hint(name: str) -> str:
    """What was probably meant. Python itself proposes nothing where there are so many names."""
    if name.startswith("_"):
        return ""
    near = importlib.import_module("difflib").get_close_matches(name, __all__, n=1)
    return f". Did you mean: {near[0]!r}?" if near else ""


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
