"""Pictures of items: from bytes or a local file to RGB, within limits. Encodes nothing.

Whoever sends item events is not trusted: only three formats are opened, sizes are checked before
anything is decoded, no URI is fetched, and no path leads out of the one folder that is allowed.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args
from urllib.parse import unquote, urlsplit

from embeddings.encoders.protocol import EncoderUnavailable

if TYPE_CHECKING:
    from PIL import Image

FORMATS: Final = ("JPEG", "PNG", "WEBP")

ImageFault = Literal[
    "not_allowed", "no_file", "too_many_bytes", "too_many_pixels", "not_a_picture", "broken"
]
IMAGE_FAULTS: Final[tuple[ImageFault, ...]] = get_args(ImageFault)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """`pictures`: the folder that URIs may lead into; empty: none may be used.

    `pixels_max` bounds memory: a decoded picture takes 4 bytes a pixel.
    """

    pictures: str = ""
    bytes_max: int = 8 << 20
    pixels_max: int = 25_000_000

    def __post_init__(self) -> None:
        if self.bytes_max < 1 or self.pixels_max < 1:
            raise ValueError("image: bytes_max and pixels_max must be at least 1")


@dataclass(frozen=True, slots=True)
class BadImage:
    """Why a picture cannot be used."""

    reason: ImageFault
    detail: str


def read_image(image: bytes | str, limits: ImageLimits) -> Image.Image | BadImage:
    """The picture in RGB, upright, on white where it is transparent; or why there is none.

    `image`: the file's bytes, or a path or `file:` URI within `limits.pictures`. A moving picture
    gives its first frame. Raises EncoderUnavailable without Pillow.
    """
    data = image if isinstance(image, bytes) else _file_bytes(image, limits)
    if isinstance(data, BadImage):
        return data
    if len(data) > limits.bytes_max:
        return _too_many_bytes(len(data), limits)
    return _decode(data, limits)


def _decode(data: bytes, limits: ImageLimits) -> Image.Image | BadImage:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise EncoderUnavailable(
            "pictures: the package pillow is not installed; install 'millrace[image]'"
        ) from error
    try:
        with warnings.catch_warnings():
            # Pillow's own limit speaks up first, as a warning: ours decides below.
            warnings.simplefilter("ignore")
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
            if opened.width * opened.height > limits.pixels_max:
                size = f"{opened.width} x {opened.height}"
                return BadImage("too_many_pixels", f"{size}, at most {limits.pixels_max}")
            opened.load()
            return _on_white(ImageOps.exif_transpose(opened))
    except Image.DecompressionBombError as error:
        return BadImage("too_many_pixels", str(error))
    except UnidentifiedImageError:
        return BadImage("not_a_picture", f"expected {', '.join(FORMATS)}, got {data[:8]!r}")
    except Exception as error:  # noqa: BLE001  # decoders raise many kinds on crafted bytes
        return BadImage("broken", f"{type(error).__name__}: {error}"[:200])


def _on_white(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layers = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _file_bytes(uri: str, limits: ImageLimits) -> bytes | BadImage:
    """The bytes of a file within the allowed folder."""
    if not limits.pictures:
        return BadImage("not_allowed", "URIs are not allowed: no folder of pictures is configured")
    try:
        split = urlsplit(uri)
        path = unquote(split.path) if split.scheme == "file" else uri
        if split.scheme not in ("", "file") or split.netloc not in ("", "localhost"):
            return BadImage("not_allowed", f"expected a file within the folder, got {uri[:80]!r}")
        root = Path(limits.pictures).resolve(strict=True)
        file = (root / path).resolve(strict=True)
        if not file.is_relative_to(root):
            return BadImage("not_allowed", f"outside of the folder of pictures: {uri[:80]!r}")
        if not file.is_file():
            return BadImage("no_file", f"not a file: {uri[:80]!r}")
        with file.open("rb") as opened:
            data = opened.read(limits.bytes_max + 1)
    except (OSError, ValueError, RuntimeError) as error:
        return BadImage("no_file", f"{uri[:80]!r}: {error}"[:200])
    return data


def _too_many_bytes(found: int, limits: ImageLimits) -> BadImage:
    return BadImage("too_many_bytes", f"{found} bytes or more, at most {limits.bytes_max}")
