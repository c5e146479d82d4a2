"""Tests the conversions in the picture process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from moyin.render.imaging import worker

LIMITS = {"pixels": 100_000, "preview_pixels": 100_000}


def png(mode: str = "RGBA", size: tuple[int, int] = (4, 2), **text: str) -> bytes:
    color = (10, 20, 30, 128)[: len(mode)]
    metadata = PngInfo()
    for name, value in text.items():
        metadata.add_text(name, value)
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG", pnginfo=metadata)
    return buffer.getvalue()


class Converter:
    """Converts pictures in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def convert(self, source: bytes, mask: bytes = b"", **task: Any) -> Image.Image:
        files = {name: str(self._folder / name) for name in ("source", "mask", "target")}
        Path(files["source"]).write_bytes(source)
        Path(files["mask"]).write_bytes(mask)
        worker.convert({**files, **task}, LIMITS)
        with Image.open(files["target"]) as picture:
            picture.load()
        return picture

    def preview(self, source: bytes, kind: str = "webp", channels: str = "") -> Image.Image:
        task: dict[str, Any] = {
            "action": "preview",
            "format": kind,
            "quality": 90,
            "channels": channels,
        }
        return self.convert(source, **task)

    def channel(self, source: bytes, channels: str) -> Image.Image:
        return self.convert(source, action="channel", channels=channels)

    def apply_mask(self, source: bytes, mask: bytes) -> Image.Image:
        return self.convert(source, mask, action="mask")


@pytest.fixture
def converter(tmp_path: Path) -> Converter:
    return Converter(tmp_path)


@pytest.mark.parametrize(
    ("kind", "channels", "mode"),
    [("webp", "rgb", "RGB"), ("webp", "", "RGBA"), ("jpeg", "", "RGB"), ("jpeg", "rgb", "RGB")],
)
def test_preview_has_the_requested_format(
    converter: Converter, kind: str, channels: str, mode: str
) -> None:
    picture = converter.preview(png(), kind, channels)
    assert (picture.format, picture.mode, picture.size) == (kind.upper(), mode, (4, 2))


def test_other_kind_of_picture_has_a_preview(converter: Converter) -> None:
    buffer = io.BytesIO()
    Image.new("P", (3, 3)).save(buffer, "GIF")
    assert converter.preview(buffer.getvalue()).size == (3, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_preview_of_a_large_picture_is_scaled_down(
    converter: Converter, monkeypatch: pytest.MonkeyPatch, kind: str, mode: str
) -> None:
    monkeypatch.setitem(LIMITS, "preview_pixels", 5_000)
    buffer = io.BytesIO()
    Image.new(mode, (400, 200), 77 if mode == "L" else (77, 77, 77)).save(buffer, kind)
    picture = converter.preview(buffer.getvalue(), channels="rgb")
    assert picture.size == (100, 50)
    assert picture.getpixel((50, 25)) == pytest.approx((77, 77, 77), abs=2)


@pytest.mark.parametrize(("width", "size"), [(100, (100, 50)), (64, (64, 32)), (1024, (400, 200))])
def test_preview_is_no_wider_than_requested(
    converter: Converter, width: int, size: tuple[int, int]
) -> None:
    task: dict[str, Any] = {"action": "preview", "format": "webp", "quality": 80, "channels": ""}
    assert converter.convert(png("RGB", (400, 200)), **task, width=width).size == size


def test_channel_has_only_colours_or_transparency(converter: Converter) -> None:
    assert converter.channel(png(), "rgb").getpixel((0, 0)) == (10, 20, 30)
    assert converter.channel(png(), "a").getpixel((0, 0)) == (0, 0, 0, 128)
    assert converter.channel(png("RGB"), "a").getpixel((0, 0)) == (0, 0, 0, 255)


def test_mask_sets_transparency_and_keeps_text(converter: Converter) -> None:
    masked_picture = converter.apply_mask(png("RGB", prompt="{}"), png())
    assert masked_picture.getpixel((3, 1)) == (10, 20, 30, 128)
    assert masked_picture.text == {"prompt": "{}"}  # type: ignore[attr-defined]


def test_impossible_conversion_is_refused(converter: Converter) -> None:
    with pytest.raises(worker.ConversionError, match="size"):
        converter.apply_mask(png(), png(size=(2, 4)))
    with pytest.raises(worker.ConversionError, match="not a readable picture"):
        converter.channel(b"not a picture", "rgb")
    with pytest.raises(worker.ConversionError, match="not a readable picture"):
        converter.preview(png()[:40])


@pytest.mark.parametrize(("kind", "width"), [("webp", 16_384), ("jpeg", 65_501)])
def test_picture_too_long_for_the_format_is_refused(
    converter: Converter, kind: str, width: int
) -> None:
    with pytest.raises(worker.ConversionError, match=f"as {kind.upper()}"):
        converter.preview(png("RGB", (width, 1)), kind)


@pytest.mark.parametrize("action", ["preview", "channel", "mask"])
def test_huge_picture_is_not_decoded(converter: Converter, action: str) -> None:
    huge_picture, small_mask = png("1", (1000, 101)), png()
    with pytest.raises(
        worker.ConversionError, match="1000 x 101 pixels; only pictures of at most 100,000"
    ) as exc_info:
        match action:
            case "preview":
                converter.preview(huge_picture)
            case "channel":
                converter.channel(huge_picture, "a")
            case _:
                converter.apply_mask(small_mask, huge_picture)
    assert exc_info.value.details == {"width": 1000, "height": 101, "max_pixels": 100_000}
