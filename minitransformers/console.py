"""What is printed to: a console of any encoding, or none."""

import os
import sys


def prepare_streams() -> None:
    """A character that the console cannot show is shown as "?", and a stream that the shell has closed takes what comes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
