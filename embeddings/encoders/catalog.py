"""The encoders by name: those built in, and plug-ins of the entry point group `millrace.encoders`.

Imports no encoder with weights before it is asked for. Fuses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Final

from embeddings.encoders.attributes import AttributeEncoder, AttributeEncoderConfig
from embeddings.encoders.hashed_text import HashedTextConfig, HashedTextEncoder
from embeddings.encoders.protocol import Encoder, EncoderUnavailable
from embeddings.encoders.supplied import SuppliedConfig, SuppliedEncoder
from infra import config as loader

GROUP: Final = "millrace.encoders"
ATTRIBUTES: Final = "attributes"
SUPPLIED: Final = "vector:"
BUILT_IN: Final = (ATTRIBUTES, "text", "minilm", "image", "vector:NAME")


def build(name: str, options: Mapping[str, Any], attributes: AttributeEncoderConfig) -> Encoder:
    """The encoder `name`. Reads no weights yet.

    `attributes` configures the attribute encoder; its `dim` and `seed` are the defaults of the
    text encoder. Raises ConfigError for bad options, EncoderUnavailable for an unknown name or a
    plug-in that fails.
    """
    at = f"items.encoder_options.{name}"
    if name == ATTRIBUTES:
        _no_options(options, at)
        return AttributeEncoder(attributes)
    if name == "text":
        defaults = {"dim": attributes.dim, "seed": attributes.seed}
        return HashedTextEncoder(loader.build(HashedTextConfig, defaults | dict(options), at=at))
    if name == "minilm":
        from embeddings.encoders.minilm import MiniLMConfig, MiniLMEncoder

        return MiniLMEncoder(loader.build(MiniLMConfig, options, at=at))
    if name == "image":
        from embeddings.encoders.image import ImageConfig, ImageEncoder

        return ImageEncoder(loader.build(ImageConfig, options, at=at))
    if name.startswith(SUPPLIED):
        config = loader.build(SuppliedConfig, options, at=at)
        try:
            return SuppliedEncoder(name.removeprefix(SUPPLIED), config)
        except ValueError as error:
            raise loader.ConfigError(f"items.encoders: {error}") from error
    return _plug_in(name, options)


def build_all(
    names: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    attributes: AttributeEncoderConfig,
) -> dict[str, Encoder]:
    """The encoders of these names, each with the options under its name; see `build`."""
    return {name: build(name, options.get(name, {}), attributes) for name in names}


def _no_options(options: Mapping[str, Any], at: str) -> None:
    if options:
        raise loader.ConfigError(
            f"{at}: takes no options; its settings are items.attributes, ignore, numeric and seed"
        )


def _plug_in(name: str, options: Mapping[str, Any]) -> Encoder:
    """The plug-in of that name, called with its options."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join((*BUILT_IN, *sorted(found)))
        raise EncoderUnavailable(
            f"items.encoders: no encoder '{name}'; there are {known}. A plug-in is found by the "
            f"entry point group '{GROUP}' of its package (docs/encoders.md)"
        )
    try:
        encoder = found[name].load()(dict(options))
        version, dim = encoder.version, encoder.dim
    except Exception as error:  # whatever a plug-in raises
        raise EncoderUnavailable(
            f"encoder '{name}' ({found[name].value}): {type(error).__name__}: {error}"
        ) from error
    if not isinstance(version, str) or not version or not isinstance(dim, int) or dim < 1:
        raise EncoderUnavailable(
            f"encoder '{name}' ({found[name].value}): expected a non-empty version and a positive "
            f"dim, got {version!r} and {dim!r}"
        )
    plug_in: Encoder = encoder
    return plug_in
