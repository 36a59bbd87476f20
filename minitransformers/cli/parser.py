"""What the command ``minitransformers`` offers. A command lives in a module of its own, which is imported when it is asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

from minitransformers.reporting.arguments import Parser, natural, positive


def make_parser() -> Parser:
    """The parser of everything; ``run`` of what it finds is "module:function" of the command, None where there was none."""
    from minitransformers import __version__

    parser = Parser(
        prog="minitransformers",
        description="Every idea of the Transformer era once, in NumPy, its backward pass written out beside its forward pass.",
        example="minitransformers tour",
    )
    parser.add_argument("--version", action="version", version=f"minitransformers {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)

    def command(name: str, run: str, help: str, example: str) -> Parser:
        found = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", example=f"minitransformers {example}")
        found.set_defaults(run=run)
        return found

    _concept_commands(command)
    _chapter_commands(command)
    _language_commands(command)
    return parser


def _concept_commands(command) -> None:
    add = command("list", "concepts:list_concepts", "list the concepts and procedures", "list norms --role norm").add_argument
    add("names", nargs="*", metavar="NAME", help="chapters, concepts and procedures to list (default: all)")
    add("--chapter", metavar="C", help="only this chapter's")
    add("--role", metavar="R", help="only those that fill this role: mixer, stack, channel, activation, norm, position, prepare, core or weighting")
    _json(add)

    add = command("check", "concepts:check", "check gradients and everything else the contract promises", "check norms linear").add_argument
    add("names", nargs="*", metavar="NAME", help="chapters, concepts and procedures to check (default: all)")
    _seed(add)
    _json(add)
    add("--write", action="store_true", help="store the errors in docs/checks.json, which the site shows")

    add = command("show", "concepts:show", "show what a concept or procedure is: source, signature, ranges, equations", "show rms_norm").add_argument
    add("name", metavar="NAME", help="the concept or procedure")

    add = command("exercise", "exercise:exercise", "write a concept without its backward, or check what was written into one", "exercise rms_norm").add_argument
    add("name", nargs="?", metavar="NAME", help="the concept whose backward is to be written")
    add("--out", type=Path, metavar="FILE", help="the file to write (default: exercise_NAME.py; a file that is there is not overwritten)")
    add("--check", type=Path, metavar="FILE", help="say which gradient of this file is wrong, where, and the likely cause")

    add = command("bench", "concepts:bench", "time concepts on their examples, in float32, beside linear", "bench rms_norm layer_norm").add_argument
    add("names", nargs="*", metavar="NAME", help="chapters, concepts and procedures to time (default: all)")
    _seed(add)
    _json(add)


def _chapter_commands(command) -> None:
    add = command("run", "chapters:run", "run chapters, or single sections of them", "run norms positional/relative --quick").add_argument
    add("chapters", nargs="*", metavar="CHAPTER", help="chapters, or sections as CHAPTER/SECTION (default: all chapters)")
    add("--quick", action="store_true", help="a few seconds each; nothing is written")
    _seed(add)
    add("--json", action="store_true", help="print {chapter: results} as JSON to stdout, everything else to stderr")

    add = command("notebook", "notebook:notebook", "write a section as a notebook, with what the pages say between its cells", "notebook norms/plane").add_argument
    add("section", metavar="CHAPTER/SECTION", help="the section")
    add("--out", type=Path, metavar="FILE", help="the file to write (default: CHAPTER_SECTION.ipynb; a file that is there is not overwritten)")

    add = command("tour", "chapters:tour", "run every chapter quickly, then build the site into ./site", "tour").add_argument
    add("--full", action="store_true", help="run the chapters in full, which renews docs/*/results")

    add = command("docs", "site:serve", "serve the site on 127.0.0.1, built first where it is out of date", "docs --port 8000").add_argument
    add("--port", type=_port, default=8000, metavar="N", help="port to listen on (default: 8000; 0 takes any that is free)")


def _language_commands(command) -> None:
    train = command("train", "language:train", "train a language model of chosen parts on text", "train --quick --norm rms_norm --position rope --out runs/first")
    add = train.add_argument_group("parts", "every concept that `minitransformers list --role` names fits").add_argument
    add("--mixer", default="multi_head_attention", metavar="NAME", help="moves information between positions; several, joined by commas, alternate (default: %(default)s)")
    add("--stack", metavar="NAME", help="in the place of all blocks, with mixers and channels of its own")
    add("--channel", default="feed_forward", metavar="NAME", help="works within a position (default: %(default)s)")
    add("--norm", default="layer_norm", metavar="NAME", help="(default: %(default)s)")
    add("--position", default="learned", metavar="NAME", help="or none (default: %(default)s)")
    add("--placement", default="pre", choices=("pre", "post", "deep"), help="norm before or after each part, or after it as DeepNorm has it (default: %(default)s)")
    add("--option", action="append", default=[], metavar="PART.KEY=VALUE", help="setting of one part, such as mixer.num_kv_heads=2 or mixer.prepare=qk_norm; may be repeated")
    add("--untied", action="store_true", help="a head of its own instead of the embeddings")
    add("--scale-embedding", action="store_true", help="embeddings times the root of the width, as sinusoidal positions need it")
    add("--fix-norm", action="store_true", help="FixNorm: every word at length one at both ends, times the root of the width at the input")
    add = train.add_argument_group("sizes").add_argument
    add("--layers", type=positive, metavar="N", help="(default: 4; quick: 2)")
    add("--heads", type=positive, metavar="N", help="(default: 4; quick: 2)")
    add("--width", type=positive, metavar="N", help="features of a position (default: 128; quick: 32)")
    add("--std", type=float, default=0.02, metavar="X", help="deviation of the first weights; small models learn sooner from 0.1 (default: %(default)s)")
    add("--context", type=positive, metavar="N", help="tokens the model sees at once (default: 64; quick: 32)")
    add = train.add_argument_group("text").add_argument
    add("--text", type=Path, metavar="FILE", help="UTF-8 text to learn (default: Python's own help topics)")
    add("--vocabulary", default="character", choices=("character", "byte"), help="what a token is (default: %(default)s)")
    add = train.add_argument_group("training").add_argument
    add("--batch", type=positive, metavar="N", help="sequences in a step (default: 16; quick: 8)")
    add("--threads", type=positive, default=1, metavar="N", help="parts of a batch side by side; 2 helps small models (default: %(default)s)")
    add("--steps", type=positive, metavar="N", help="(default: 1000; quick: 300)")
    add("--learning-rate", type=float, metavar="X", help="at its highest (default: 0.001; quick: 0.01)")
    add("--warmup", type=natural, metavar="N", help="steps until then (default: a tenth of all, at most 100)")
    add("--weight-decay", type=float, default=0.1, metavar="X", help="(default: %(default)s)")
    add("--clip", type=float, default=1.0, metavar="X", help="largest norm of the gradient (default: %(default)s)")
    add("--dropout", type=float, default=0.0, metavar="X", help="(default: %(default)s)")
    _seed(add)
    add("--quick", action="store_true", help="a small model for a few seconds")
    add = train.add_argument_group("results").add_argument
    add("--out", type=_folder, default=Path("runs/model"), metavar="DIR", help="folder of the checkpoint (default: %(default)s)")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    _json(add)

    add = command("generate", "language:generate", "continue a text with a trained model", 'generate runs/first --prompt "The " --tokens 200 --temperature 0.8').add_argument
    add("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="folder that `minitransformers train` wrote")
    add("--model", choices=("smollm2",), help="in its place a published model, which `minitransformers weights` lists")
    add("--prompt", required=True, metavar="TEXT", help="text to continue, in characters that the model knows")
    add("--tokens", type=natural, metavar="N", help="tokens to add (default: 200; a published model: 100, or fewer where the text ends)")
    add("--temperature", type=float, metavar="X", help="0 takes the likeliest token (default: 1; a published model: 0)")
    add("--top-k", type=int, metavar="N", help="draw from the N likeliest tokens")
    add("--top-p", type=float, metavar="X", help="draw from the likeliest tokens that hold this much probability together")
    add("--min-p", type=float, metavar="X", help="draw from tokens at least X times as probable as the likeliest")
    add("--repetition-penalty", type=float, metavar="X", help="above 1 makes tokens that the text has less likely")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    _seed(add)
    add("--no-cache", action="store_true", help="read the whole window for every token")

    add = command("similarity", "published:similarity", "say how alike texts are, by MiniLM", 'similarity "The cat sits on the mat." "A feline rests on a rug."').add_argument
    add("text", metavar="TEXT", help="the text that the others are compared with")
    add("others", nargs="+", metavar="OTHER", help="what it is compared with")
    _json(add)

    add = command("fill-mask", "published:fill_mask", "fill the gaps of a molecule or a reaction, by ALBERT", 'fill-mask "CC(=O)O.OCC>>CC(=[MASK])OCC"').add_argument
    add("text", metavar="SMILES", help="a text in SMILES, with [MASK] for each gap")
    add("--top", type=positive, default=5, metavar="N", help="how many tokens to list for a gap (default: %(default)s)")
    _json(add)

    add = command("text-kinds", "published:text_kinds", "say which part of a text is English, Python, JSON, ..., by a Mamba over bytes", "text-kinds README.md").add_argument
    add("file", type=Path, metavar="FILE", help="the text, or - for standard input")
    _json(add)

    add = command("transcribe", "published:transcribe", "write down the English that is spoken in a sound, by Whisper", "transcribe talk.wav").add_argument
    add("file", type=Path, metavar="FILE", help="a WAV file of 16 bits a sample, of any rate and number of channels")
    _json(add)

    add = command("weights", "weights:weights", "list published models, whether they are there, and how to obtain them", "weights").add_argument
    _json(add)


def _seed(add) -> None:
    add("--seed", type=natural, default=0, metavar="N", help="seed of every random number (default: %(default)s)")


def _json(add) -> None:
    add("--json", action="store_true", help="print JSON to stdout")


def _folder(text: str) -> Path:
    try:
        text.encode()
    except UnicodeEncodeError:                               # bytes that are no text: its name could not be told
        text = ""
    if not text:
        raise argparse.ArgumentTypeError("wants the name of a folder, in characters")
    return Path(text)


def _port(text: str) -> int:
    number = natural(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"got {text}, wants at most 65535")
    return number
