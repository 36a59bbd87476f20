"""What a section cannot run without: published weights and data that may not be here."""

from __future__ import annotations

from collections.abc import Callable

from minitransformers.models.published import published_file


def needs_data(*wanted: tuple[str, str]) -> Callable[[bool], str | None]:
    """What says why a section on published data cannot run; each of wanted is the name of a set and what of it is read."""

    def missing(quick: bool) -> str | None:
        for name, role in wanted:
            try:
                published_file(name, role)
            except ValueError as error:
                return str(error)
        return None

    return missing


def missing_smollm2(quick: bool) -> str | None:
    """Why a section on SmolLM2 cannot run, or None: its file is not here, or a quick run has no time to load it."""
    try:
        published_file("smollm2")
    except ValueError as error:
        return str(error)
    return "loading SmolLM2 takes longer than a quick run may last" if quick else None
