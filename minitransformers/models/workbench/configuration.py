"""What a language model is made of: its sizes, the names of its parts, and the parts as functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from minitransformers.foundation import invalid
from minitransformers.models.workbench.parts import Part
from minitransformers.models.workbench.transformer_block import post_norm, pre_norm
from minitransformers.norms.deep_norm import DeepNormConstants, deep_norm_constants


@dataclass(frozen=True)
class LanguageModelConfig:
    """Sizes (in tokens, features, layers, heads) and the names of the parts.

    mixer may be several names joined by commas, between which the layers alternate: "mamba,sliding_window_attention". stack, a
    concept of that role, takes the place of all blocks, and of the mixer and channel named here.
    options gives a role's part what only it takes, and puts concepts into its slots by name (see parts):
    ``{"mixer": {"window": 32, "core": "sparsemax_attention"}}``; each of several mixers takes what it knows.
    position may be "none". placement is "pre", "post" or "deep": DeepNorm, post-norm of a stream scaled by alpha for the depth,
    and smaller weights at the start (derived for norms that forget scale; others are accepted). fix_norm is FixNorm: every word
    is a direction, at both ends.
    Raises ValueError that names the field for sizes below one, unknown parts and options, more mixers than layers,
    a position that no mixer has a place for, and FixNorm without tied embeddings.
    """

    vocabulary_size: int
    context: int = 64
    d_model: int = 128
    num_layers: int = 4
    num_heads: int = 4
    mixer: str = "multi_head_attention"
    channel: str = "feed_forward"
    norm: str = "layer_norm"
    position: str = "learned"
    placement: str = "pre"
    tied: bool = True
    dropout: float = 0.0
    scale_embedding: bool = False
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stack: str | None = None
    fix_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "context", "d_model", "num_layers", "num_heads"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise invalid(name, got=repr(size), wants="a whole number of at least 1")
        if self.placement not in ("pre", "post", "deep"):
            raise invalid("placement", got=repr(self.placement), wants='"pre", "post" or "deep"')
        if self.fix_norm and not self.tied:
            raise invalid("fix_norm", got="a head of its own", wants="tied embeddings: the words that are read are those that are scored")
        if not 0 <= self.dropout < 1:
            raise invalid("dropout", got=self.dropout, wants="a rate of at least 0 and below 1")
        for role in self.options:
            if role not in ("mixer", "stack", "channel", "norm", "position"):
                raise invalid(f"options.{role}", got="an unknown role", wants="mixer, stack, channel, norm or position")
        if self.stack is not None:
            for name in ("mixer", "channel", "placement", "dropout"):  # a stack has its own, and would ignore them
                if (got := getattr(self, name)) != (default := type(self).__dataclass_fields__[name].default):
                    raise invalid(name, got=repr(got), wants=f"{default!r}: the stack {self.stack} decides itself")
        elif len(self.mixer.split(",")) > self.num_layers:
            raise invalid("mixer", got=self.mixer, wants=f"at most {self.num_layers} names, one a layer")
        mixers = self.mixers  # an unknown part should fail here, not at the first call
        position = self.parts.get("position")
        for place, argument, kind in (("bias", "bias", "a bias on the scores"), ("rotation", "prepare", "a rotation of queries and keys")):
            if position and position.place == f"position/{place}" and not any(part.takes(argument) for part in mixers):
                got = f"{self.position}, {kind}, with {self.stack or f'the mixer {self.mixer}'}, which takes none"
                raise invalid("position", got=got, wants="another position, or another mixer")

    @functools.cached_property
    def mixers(self) -> list[Part]:
        """What moves information between positions: the mixer of each layer, or the one stack."""
        if self.stack is not None:
            return [Part.of("stack", self.stack, self.options.get("stack", {}))]
        alternating = Part.alternating("mixer", self.mixer.split(","), self.options.get("mixer", {}))
        return [alternating[layer % len(alternating)] for layer in range(self.num_layers)]

    @functools.cached_property
    def parts(self) -> dict[str, Part]:
        """The chosen part of each role that all layers share; no position for "none", no channel beside a stack."""
        names = {"channel": self.channel, "norm": self.norm, "position": self.position}
        without = (("position", "none"), ("channel", self.channel if self.stack else None))
        return {role: Part.of(role, name, self.options.get(role, {})) for role, name in names.items() if (role, name) not in without}

    @property
    def rotation(self) -> Part | None:
        """The position, where it is a rotation of queries and keys."""
        position = self.parts.get("position")
        return position if position is not None and position.place == "position/rotation" else None

    @functools.cached_property
    def bound(self) -> Bound:
        """The parts as functions, their configuration filled in once."""
        parts, settings = self.parts, {"num_heads": self.num_heads}
        position = parts.get("position")
        place = position.place if position else None
        return Bound(
            mixers=[BoundMixer.of(part, part.bind(rotation=self.rotation, **settings), part.bind_step(rotation=self.rotation, **settings))
                    for part in self.mixers],
            channel=parts["channel"].bind() if "channel" in parts else None,
            norm=parts["norm"].bind(),
            placement=pre_norm if self.placement == "pre" else functools.partial(post_norm, alpha=self.deep.alpha),
            input_position=position.bind() if position and place == "position/input" else None,
            bias_position=position.bind() if position and place == "position/bias" else None,
        )  # fmt: skip

    @property
    def embedding_scale(self) -> float:
        """s in the language model's equation (1)."""
        return self.d_model**0.5 if self.scale_embedding or self.fix_norm else 1.0

    @property
    def deep(self) -> DeepNormConstants:
        """What DeepNorm multiplies the stream and the first weights by; ones where the placement is another."""
        return deep_norm_constants(self.num_layers) if self.placement == "deep" else DeepNormConstants(1.0, 1.0)

    def to_json(self) -> dict[str, Any]:
        """A dict that json can write and from_json reads."""
        return {**asdict(self), "options": {role: dict(options) for role, options in self.options.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LanguageModelConfig:
        """The configuration of such a dict. Raises ValueError for unknown or missing fields."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"configuration: unknown fields {', '.join(unknown)}")
        if "vocabulary_size" not in values:
            raise ValueError("configuration: vocabulary_size is missing")
        return cls(**values)


class BoundMixer(NamedTuple):
    """A mixer or a stack in the form of its role, ``call(params, x, bias, mask=mask) -> out, backward``, and its decoding step,
    ``step(params, x, state, bias=bias, mask=mask) -> out, state``, or None.

    A bias on the scores is for those that have scores; a mask that a mixer has no place for raises ValueError.
    """

    call: Callable
    step: Any

    @classmethod
    def of(cls, part: Part, call: Callable, step: Callable | None) -> BoundMixer:
        """The part's function, which may take neither bias nor mask, in the form of the role."""
        takes_bias, takes_mask = part.takes("bias"), part.takes("mask")

        def masked(mask: Any) -> dict[str, Any]:
            if mask is not None and not takes_mask:
                raise invalid("mask", got="a mask", wants=f"None: {part.entry.name} has no place for one")
            return {"mask": mask} if takes_mask else {}

        def in_the_role(params: Any, x: Any, bias: Any = None, *, mask: Any = None) -> tuple[Any, Callable]:
            if takes_bias:
                return call(params, x, bias, **masked(mask))
            out, backward = call(params, x, **masked(mask))
            return out, lambda dout: (*backward(dout), None)

        def a_few(params: Any, x: Any, state: Any, *, bias: Any = None, mask: Any = None) -> tuple[Any, Any]:
            assert step is not None
            return step(params, x, state, **masked(mask), **({"bias": bias} if takes_bias else {}))

        return cls(in_the_role, None if step is None else a_few)


class Bound(NamedTuple):
    """The parts of one configuration as functions; mixers has one for each layer, or the stack alone."""

    mixers: list[BoundMixer]
    channel: Any
    norm: Callable
    placement: Callable
    input_position: Callable | None
    bias_position: Callable | None
