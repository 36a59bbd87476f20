"""Commands about language models: train, generate."""

from __future__ import annotations

import argparse
import codecs
import functools
import itertools
import json
import math
import shlex
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import trees
from minitransformers.models import sampling
from minitransformers.models.decoding import generate as continue_text
from minitransformers.models.decoding import without_cache
from minitransformers.models.stopping import until_text
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model
from minitransformers.reporting.arguments import UsageError
from minitransformers.training.config import TrainingConfig
from minitransformers.training.loop import CHECKPOINT
from minitransformers.training.loop import train as run_training
from minitransformers.training.optimizer import TrainingDiverged
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas
from minitransformers.training.workbench import load_trained, workbench_task
from minitransformers.training.yardsticks import yardsticks

ROLES = ("mixer", "stack", "channel", "norm", "position")


def train(arguments: argparse.Namespace) -> int:
    """``minitransformers train``."""
    small = arguments.quick
    if small:
        hold_blas()

    def chosen(name: str, default: Any, quick: Any) -> Any:
        value = getattr(arguments, name)
        return value if value is not None else quick if small else default

    context, steps = chosen("context", 64, 32), chosen("steps", 1000, 300)
    warmup = arguments.warmup if arguments.warmup is not None else min(100, steps // 10)
    if warmup > steps:
        raise UsageError(f"--warmup: got {warmup}, wants at most the {steps} steps")
    if chosen("batch", 16, 8) % arguments.threads:
        raise UsageError(f"--threads: got {arguments.threads}, wants a divisor of the batch of {chosen('batch', 16, 8)}")
    training_config = TrainingConfig(
        steps=steps, micro_batches=arguments.threads, threads=arguments.threads,
        learning_rate=chosen("learning_rate", 1e-3, 1e-2), warmup=warmup / steps,
        weight_decay=arguments.weight_decay, clip=arguments.clip, seed=arguments.seed,
        eval_every=max(1, steps // 4), checkpoint_every=max(1, steps // 4),
    )  # fmt: skip
    corpus = Corpus.load(arguments.text, context=context, vocabulary=f"{arguments.vocabulary}s")
    model_config = LanguageModelConfig(
        vocabulary_size=corpus.vocabulary.size, context=context, d_model=chosen("width", 128, 32),
        num_layers=chosen("layers", 4, 2), num_heads=chosen("heads", 4, 2),
        mixer=arguments.mixer, stack=arguments.stack, channel=arguments.channel, norm=arguments.norm, position=arguments.position, placement=arguments.placement, tied=not arguments.untied,
        scale_embedding=arguments.scale_embedding, fix_norm=arguments.fix_norm, dropout=arguments.dropout,
        options=_options(arguments.option),
    )  # fmt: skip
    _try(model_config)
    try:
        result = run_training(
            task=workbench_task(corpus, model_config, batch_size=chosen("batch", 16, 8), eval_windows=64 if small else 256),
            init=functools.partial(init_language_model, config=model_config, std=arguments.std), config=training_config, folder=arguments.out,
            resume=arguments.resume,
        )  # fmt: skip
    except TrainingDiverged as error:
        raise UsageError(f"the training diverged: {error}; a lower --learning-rate may help") from None

    simpler = yardsticks(corpus.train_text, corpus.validation_text)
    report = {
        "checkpoint": str(arguments.out / CHECKPOINT),
        "parameters": trees.count_parameters(result.params),
        "steps": result.history[-1].step,
        "validation": result.final_validation,
        "best_validation": result.best_validation,
        "best_step": result.best_step,
        "seconds": result.seconds,
        "tokens_per_second": result.labels_per_second,
        "bigram": simpler.bigram,
        "lzma": simpler.lzma_after_train,
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0
    print(f"parameters   {report['parameters']:,}")
    print(f"validation   {report['validation']:.3f} bits a character (best {report['best_validation']:.3f}, step {report['best_step']})")
    print(f"simpler      {simpler.bigram:.3f} by counting pairs, {simpler.lzma_after_train:.3f} by lzma")
    print(f"time         {report['seconds']:.1f} s in steps, {report['tokens_per_second']:,.0f} tokens a second")
    print(f"checkpoint   {report['checkpoint']}")
    first_word = (corpus.train_text.split() or [corpus.train_text])[0][:20]
    print(f"\nTry: minitransformers generate {shlex.quote(str(arguments.out))} --prompt={shlex.quote(first_word)}")
    return 0


def _try(config: LanguageModelConfig) -> None:
    """Call the model once, so that a part's option that cannot be is refused before anything is written."""
    try:
        params = init_language_model(np.random.default_rng(0), config)
        language_model(params, ids=np.zeros((1, config.context), int), config=config)
    except (TypeError, AttributeError) as error:             # a value of another kind than the part takes
        if not config.options:
            raise
        raise UsageError(f"--option: a part cannot be made with these: {error}") from None


class _Writer(NamedTuple):
    """What writing wants of a model: ends are the tokens at which a text ends, tokens and temperature what is chosen where nobody does."""

    encode: Callable[[str], Array]
    bytes_of: Callable[[int], bytes]
    step: Callable
    whole: Callable
    context: int
    ends: Container[int]
    tokens: int
    temperature: float


def generate(arguments: argparse.Namespace) -> int:
    """``minitransformers generate``: the text appears as it is written."""
    if (arguments.checkpoint is None) == (arguments.model is None):
        raise UsageError(f"generate: got {'neither' if arguments.model is None else 'both'}, wants a CHECKPOINT or --model")
    if not arguments.prompt:
        raise UsageError("--prompt: got no text, wants at least one character")
    if not all(arguments.stop):
        raise UsageError("--stop: got no text, wants at least one character")
    writer = _trained(arguments.checkpoint) if arguments.model is None else _published(arguments.model)
    try:
        prompt_ids = writer.encode(arguments.prompt)
    except ValueError as error:
        raise UsageError(f"--prompt: {error}") from None
    if arguments.model is not None and len(prompt_ids) > writer.context:
        raise UsageError(f"--prompt: got {len(prompt_ids):,} tokens, wants at most {writer.context:,}, which {arguments.model} was made for")
    ids = continue_text(
        without_cache(writer.whole) if arguments.no_cache else writer.step, prompt_ids=prompt_ids,
        num_tokens=writer.tokens if arguments.tokens is None else arguments.tokens, rng=np.random.default_rng(arguments.seed),
        context=writer.context, **_sampling(arguments, writer.temperature),
    )  # fmt: skip
    sys.stdout.write(arguments.prompt)
    sys.stdout.flush()
    pieces = _pieces(map(writer.bytes_of, itertools.takewhile(lambda i: i not in writer.ends, ids)))
    for piece in until_text(pieces, stop=arguments.stop):
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()
    return 0


def _sampling(arguments: argparse.Namespace, temperature: float) -> dict[str, Any]:
    """Settings of decoding, in the order of the field's libraries: penalty, temperature, top-k, top-p, and min-p behind all of them."""
    chosen = {"temperature": temperature if arguments.temperature is None else arguments.temperature, "top_k": arguments.top_k, "top_p": arguments.top_p}
    penalty, least = arguments.repetition_penalty, arguments.min_p
    if penalty is not None and not 0 < penalty < math.inf:
        raise UsageError(f"--repetition-penalty: got {penalty:g}, wants a finite number above 0")
    if least is not None and not 0 < least <= 1:
        raise UsageError(f"--min-p: got {least:g}, wants a number above 0 and at most 1")
    first = [] if penalty is None else [functools.partial(sampling.repetition_penalty, penalty=penalty)]
    if least is None:
        return {"processors": first, **chosen}
    keywords = {"temperature": "value", "top_k": "k", "top_p": "p"}
    row = [functools.partial(getattr(sampling, name), **{keywords[name]: value}) for name, value in chosen.items() if value is not None]
    return {"processors": [*first, *row, functools.partial(sampling.min_p, p=least)]}


def _trained(checkpoint: Path) -> _Writer:
    trained = load_trained(checkpoint)
    vocabulary = trained.vocabulary
    whole = functools.partial(language_model, trained.params, config=trained.config)
    bytes_of = (lambda i: bytes([i])) if vocabulary.kind == "bytes" else lambda i: vocabulary.decode([i]).encode()
    return _Writer(vocabulary.encode, bytes_of, trained.decode, whole, trained.config.context, (), tokens=200, temperature=1.0)


def _published(name: str) -> _Writer:
    from minitransformers.models.llama import llama, llama_step
    from minitransformers.models.llama_gguf import load_llama_gguf
    from minitransformers.models.published import published_file
    from minitransformers.models.tokenizers.byte_pair_encoding import byte_pair_encode

    model = load_llama_gguf(published_file(name))
    step, whole = (functools.partial(form, model.params, **model.settings) for form in (llama_step, llama))
    encode = functools.partial(byte_pair_encode, vocabulary=model.vocabulary)
    return _Writer(encode, model.vocabulary.tokens.__getitem__, step, whole, model.context, model.ends, tokens=100, temperature=0.0)


def _pieces(parts: Iterable[bytes]) -> Iterator[str]:
    """The text of some bytes, as soon as it is whole: a character may take several of them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    yield from map(decoder.decode, parts)
    yield decoder.decode(b"", final=True)


def _cut(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:40]!r}…"


def _options(given: list[str]) -> dict[str, dict[str, Any]]:
    """``["mixer.window=32"]`` as ``{"mixer": {"window": 32}}``; values are JSON, or else text."""
    found: dict[str, dict[str, Any]] = {}
    for option in given:
        path, equals, text = option.partition("=")
        role, dot, key = path.partition(".")
        if not equals or not dot or not key or role not in ROLES:
            raise UsageError(f"--option: got {_cut(option)}, wants PART.KEY=VALUE with PART one of {', '.join(ROLES)}")
        found.setdefault(role, {})[key] = _value(text, f"--option {path}")
    return found


def _value(text: str, what: str) -> Any:
    """JSON, or else the text itself. Raises UsageError for JSON that no checkpoint could hold."""
    if (brackets := text.count("[") + text.count("{")) > 100:
        raise UsageError(f"{what}: got {_cut(text)} with {brackets} brackets, wants at most 100")
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except json.JSONDecodeError:
        return text
    except ValueError:                                       # NaN, 1e999, a number with thousands of digits
        raise UsageError(f"{what}: got {_cut(text)}, wants finite numbers") from None
    return value
