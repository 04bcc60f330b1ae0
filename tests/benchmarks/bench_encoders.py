"""Speed of the encoders: items a second by wall clock and by processor time. Asserts nothing.

python -m tests.benchmarks.bench_encoders [--items 128] [--threads 2] [--device cpu]

With a busy machine look at the processor time: an item's cost over all threads.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence

import numpy as np
import torch

from embeddings.encoders import catalog
from embeddings.encoders.attributes import AttributeEncoderConfig
from embeddings.encoders.protocol import Encoder, Loadable
from embeddings.fusion import FusedEncoder, FusionConfig
from embeddings.item_content import ItemContent

WORDS = ("red", "running", "shoe", "for", "men", "with", "a", "light", "soft", "sole", "of", "wool")


def texts(count: int, words: int) -> list[ItemContent]:
    rng = np.random.default_rng(0)
    return [
        ItemContent(item_id=i, ts_ms=0, text=" ".join(rng.choice(WORDS, words)))
        for i in range(count)
    ]


def pictures(count: int, side: int) -> list[ItemContent]:
    from PIL import Image

    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        coarse = rng.integers(0, 256, (12, 12, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(coarse).resize((side, side)).save(out, "JPEG", quality=90)
        made.append(ItemContent(item_id=i, ts_ms=0, image=out.getvalue()))
    return made


def measure(what: str, encoder: Encoder, items: Sequence[ItemContent]) -> None:
    encoder.encode_many(items[:4])
    wall, busy = time.perf_counter(), time.process_time()
    _, present = encoder.encode_many(items)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    count = int(present.sum())
    print(f"{what:<44}{count / wall:>10.0f} items/s{busy / count * 1e3:>10.2f} ms CPU per item")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    attributes = AttributeEncoderConfig(dim=128)
    options = {name: {"device": args.device} for name in ("minilm", "image")}
    built = {n: catalog.build(n, options.get(n, {}), attributes) for n in ("text", *options)}
    for name, encoder in built.items():
        if isinstance(encoder, Loadable):
            start = time.perf_counter()
            encoder.load()
            print(f"{name:<44}{time.perf_counter() - start:>10.2f} s to load")
    measure("text, 100 words", built["text"], texts(args.items * 8, 100))
    for tokens in (16, 64, 128):
        measure(f"minilm, {tokens} tokens", built["minilm"], texts(args.items, tokens - 2))
    measure("image, JPEG of 500 x 500", built["image"], pictures(args.items, 500))
    both = texts(args.items, 62)
    whole = [
        ItemContent(item_id=i, ts_ms=0, text=t.text, image=p.image)
        for i, (t, p) in enumerate(zip(both, pictures(args.items, 500), strict=True))
    ]
    fusion = FusedEncoder({n: built[n] for n in options}, FusionConfig(dim=128))
    measure("minilm of 64 tokens + image, fused to 128", fusion, whole)


if __name__ == "__main__":
    main()
