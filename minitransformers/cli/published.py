"""Commands that run published models: similarity, fill-mask, text-kinds, transcribe. Each reads weights that are there, and fetches none."""

from __future__ import annotations

import argparse
import json
import sys

from minitransformers.models.minilm import load_minilm, minilm_vectors
from minitransformers.models.molecules import MASK, fill_gaps, load_molecules, smiles_tokens
from minitransformers.models.sound_file import read_wav
from minitransformers.models.speech import load_speech_model
from minitransformers.models.speech import transcribe as heard_in
from minitransformers.models.text_kinds import load_byte_model, text_segments
from minitransformers.reporting.tables import aligned


def similarity(arguments: argparse.Namespace) -> int:
    """``minitransformers similarity TEXT OTHER ...``: the cosine of a text with each of the others, the most alike first."""
    first, *vectors = minilm_vectors([arguments.text, *arguments.others], model=load_minilm())
    found = sorted(((float(first @ vector), other) for vector, other in zip(vectors, arguments.others, strict=True)), reverse=True)
    if arguments.json:
        rows = [{"text": other, "cosine": cosine} for cosine, other in found]
        print(json.dumps({"text": arguments.text, "others": rows}, indent=2, ensure_ascii=False))
    else:
        print("\n".join(f"{cosine:7.4f}  {' '.join(other.split())}" for cosine, other in found))
    return 0


def fill_mask(arguments: argparse.Namespace) -> int:
    """``minitransformers fill-mask SMILES``: what stands most probably in each [MASK] of a molecule or a reaction."""
    smiles_tokens(arguments.text)                            # a text that is none needs no weights to be refused
    gaps = fill_gaps(arguments.text, model=load_molecules(), top=arguments.top)
    if arguments.json:
        print(json.dumps({"text": arguments.text, "gaps": [[one._asdict() for one in gap] for gap in gaps]}, indent=2))
        return 0
    rows = [[i + 1 if j == 0 else "", one.token, f"{one.probability:.4f}"] for i, gap in enumerate(gaps) for j, one in enumerate(gap)]
    print(aligned(["gap", "token", "probability"], rows))
    filled = arguments.text
    for best, *_ in gaps:
        filled = filled.replace(MASK, best.token, 1)
    print(f"\n{filled}")
    return 0


def text_kinds(arguments: argparse.Namespace) -> int:
    """``minitransformers text-kinds FILE``: which part of a text is of which kind; - reads standard input."""
    # What is no UTF-8 becomes U+FFFD: to the model, all that is no ASCII is one.
    text = sys.stdin.read() if str(arguments.file) == "-" else arguments.file.read_text(encoding="utf-8", errors="replace")
    parts = text_segments(text, model=load_byte_model())
    if arguments.json:
        print(json.dumps([part._asdict() for part in parts], indent=2))
        return 0
    rows = [[part.start, part.end, part.kind, f"{part.probability:.2f}", _beginning(text[part.start : part.end])] for part in parts]
    print(aligned(["from", "to", "kind", "sure", "begins with"], rows))
    return 0


def transcribe(arguments: argparse.Namespace) -> int:
    """``minitransformers transcribe FILE``: what is said in a sound, a line for each part of it, as soon as it is heard."""
    samples = read_wav(arguments.file)                       # a file that is none needs no weights to be refused
    parts = heard_in(samples, model=load_speech_model())
    if arguments.json:
        print(json.dumps([part._asdict() for part in parts], indent=2, ensure_ascii=False))
        return 0
    for part in parts:
        print(part.text, flush=True)
    return 0


def _beginning(text: str, width: int = 40) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
