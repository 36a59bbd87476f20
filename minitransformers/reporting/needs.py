"""What a section cannot run without: published weights that may not be here."""

from __future__ import annotations

from minitransformers.models.published import published_file


def missing_smollm2(quick: bool) -> str | None:
    """Why a section on SmolLM2 cannot run, or None: its file is not here, or a quick run has no time to load it."""
    try:
        published_file("smollm2")
    except ValueError as error:
        return str(error)
    return "loading SmolLM2 takes longer than a quick run may last" if quick else None
