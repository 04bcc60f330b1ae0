"""Toys of colours and shapes, and a BERT of two layers with random weights, to try FLIP on."""

from __future__ import annotations

import torch

from embeddings.encoders.wordpiece import WordPiece
from embeddings.item_content import ItemContent
from embeddings.pretrain.flip import FlipConfig, FlipNet
from embeddings.pretrain.flip_rows import FlipRows, flip_rows

COLOURS = ("red", "green", "blue", "black", "white", "grey")
SHAPES = ("ball", "cube", "cone")
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ":", ".", ",", "item", "colour", "shape", "a",
    "toy", "##s", *COLOURS, *SHAPES, "old", "new", "big", "small",
]  # fmt: skip
HEADS, WIDTH = 2, 16


def pieces_of_toys() -> WordPiece:
    """Each word is a piece."""
    return WordPiece("\n".join(WORDS).encode())


def items(n: int = 36) -> list[ItemContent]:
    """Colour and shape are functions of the item's number; the text says a few words more."""
    return [
        ItemContent(
            item_id=i, ts_ms=i, title=f"{WORDS[-4 + i % 2]} {WORDS[-2 + i // 2 % 2]} toys",
            attributes={"colour": COLOURS[i % 6], "shape": [SHAPES[i // 6 % 3]], "rank": i},
        )
        for i in range(n)
    ]  # fmt: skip


def rows_of(pieces: WordPiece, n: int = 36) -> FlipRows:
    """The items with colour and shape as fields."""
    return flip_rows(items(n), ("colour", "shape"), pieces, 32)


def tiny_bert(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a BERT of two layers."""
    torch.manual_seed(seed)
    shapes = {"attention.self.query": (16, 16), "attention.self.key": (16, 16),
              "attention.self.value": (16, 16), "attention.output.dense": (16, 16),
              "intermediate.dense": (32, 16), "output.dense": (16, 32)}  # fmt: skip
    weights = {
        "embeddings.word_embeddings.weight": torch.randn(len(WORDS), WIDTH) * 0.3,
        "embeddings.position_embeddings.weight": torch.randn(64, WIDTH) * 0.1,
        "embeddings.token_type_embeddings.weight": torch.zeros(2, WIDTH),
        "pooler.dense.weight": torch.zeros(WIDTH, WIDTH),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(2):
        at = f"encoder.layer.{layer}."
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
        for name, shape in shapes.items():
            weights[f"{at}{name}.weight"] = torch.randn(shape) * 0.2
            weights[f"{at}{name}.bias"] = torch.zeros(shape[0])
    for name in norms:
        weights |= {f"{name}.weight": torch.ones(WIDTH), f"{name}.bias": torch.zeros(WIDTH)}
    return weights


def net_of(rows: FlipRows, pieces: WordPiece, **options: object) -> FlipNet:
    """A small net on them; always the same first weights."""
    torch.manual_seed(3)
    config = FlipConfig(**{"width": 24, "value_width": 8, "batch": 12, **options})
    return FlipNet(tiny_bert(), HEADS, rows, pieces.mask, config)
