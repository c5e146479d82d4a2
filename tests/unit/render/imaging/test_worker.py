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


def make_png(mode: str = "RGBA", size: tuple[int, int] = (4, 2), **text_chunks: str) -> bytes:
    color = (10, 20, 30, 128)[: len(mode)]
    metadata = PngInfo()
    for name, value in text_chunks.items():
        metadata.add_text(name, value)
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG", pnginfo=metadata)
    return buffer.getvalue()


class Converter:
    """Runs conversions of `worker.convert` on files in a folder, and returns the pictures."""

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

    def make_preview(
        self, source: bytes, file_format: str = "webp", channels: str = ""
    ) -> Image.Image:
        task: dict[str, Any] = {
            "action": "preview",
            "format": file_format,
            "quality": 90,
            "channels": channels,
        }
        return self.convert(source, **task)

    def extract_channel(self, source: bytes, channels: str) -> Image.Image:
        return self.convert(source, action="channel", channels=channels)

    def apply_mask(self, source: bytes, mask: bytes) -> Image.Image:
        return self.convert(source, mask, action="mask")


@pytest.fixture
def converter(tmp_path: Path) -> Converter:
    return Converter(tmp_path)


@pytest.mark.parametrize(
    ("file_format", "channels", "mode"),
    [("webp", "rgb", "RGB"), ("webp", "", "RGBA"), ("jpeg", "", "RGB"), ("jpeg", "rgb", "RGB")],
)
def test_preview_has_the_requested_format(
    converter: Converter, file_format: str, channels: str, mode: str
) -> None:
    picture = converter.make_preview(make_png(), file_format, channels)
    assert (picture.format, picture.mode, picture.size) == (file_format.upper(), mode, (4, 2))


def test_gif_has_a_preview(converter: Converter) -> None:
    buffer = io.BytesIO()
    Image.new("P", (3, 3)).save(buffer, "GIF")
    assert converter.make_preview(buffer.getvalue()).size == (3, 3)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_preview_of_a_large_picture_is_scaled_down(
    converter: Converter, monkeypatch: pytest.MonkeyPatch, file_format: str, mode: str
) -> None:
    monkeypatch.setitem(LIMITS, "preview_pixels", 5_000)
    buffer = io.BytesIO()
    Image.new(mode, (400, 200), 77 if mode == "L" else (77, 77, 77)).save(buffer, file_format)
    picture = converter.make_preview(buffer.getvalue(), channels="rgb")
    assert picture.size == (100, 50)
    assert picture.getpixel((50, 25)) == pytest.approx((77, 77, 77), abs=2)


@pytest.mark.parametrize(("width", "size"), [(100, (100, 50)), (64, (64, 32)), (1024, (400, 200))])
def test_preview_is_no_wider_than_requested(
    converter: Converter, width: int, size: tuple[int, int]
) -> None:
    task: dict[str, Any] = {"action": "preview", "format": "webp", "quality": 80, "channels": ""}
    assert converter.convert(make_png("RGB", (400, 200)), **task, width=width).size == size


def test_channel_has_only_colours_or_transparency(converter: Converter) -> None:
    assert converter.extract_channel(make_png(), "rgb").getpixel((0, 0)) == (10, 20, 30)
    assert converter.extract_channel(make_png(), "a").getpixel((0, 0)) == (0, 0, 0, 128)
    assert converter.extract_channel(make_png("RGB"), "a").getpixel((0, 0)) == (0, 0, 0, 255)


def test_mask_sets_transparency_and_keeps_text(converter: Converter) -> None:
    masked_picture = converter.apply_mask(make_png("RGB", prompt="{}"), make_png())
    assert masked_picture.getpixel((3, 1)) == (10, 20, 30, 128)
    assert masked_picture.text == {"prompt": "{}"}  # type: ignore[attr-defined]


def test_impossible_conversion_is_refused(converter: Converter) -> None:
    with pytest.raises(worker.ConversionError, match="size"):
        converter.apply_mask(make_png(), make_png(size=(2, 4)))
    with pytest.raises(worker.ConversionError, match="not a readable picture"):
        converter.extract_channel(b"not a picture", "rgb")
    with pytest.raises(worker.ConversionError, match="not a readable picture"):
        converter.make_preview(make_png()[:40])


@pytest.mark.parametrize(("file_format", "width"), [("webp", 16_384), ("jpeg", 65_501)])
def test_picture_too_long_for_the_format_is_refused(
    converter: Converter, file_format: str, width: int
) -> None:
    with pytest.raises(worker.ConversionError, match=f"as {file_format.upper()}"):
        converter.make_preview(make_png("RGB", (width, 1)), file_format)


@pytest.mark.parametrize("action", ["preview", "channel", "mask"])
def test_huge_picture_is_not_decoded(converter: Converter, action: str) -> None:
    huge_picture, small_mask = make_png("1", (1000, 101)), make_png()
    with pytest.raises(
        worker.ConversionError, match="1000 x 101 pixels; only pictures of at most 100,000"
    ) as exc_info:
        match action:
            case "preview":
                converter.make_preview(huge_picture)
            case "channel":
                converter.extract_channel(huge_picture, "a")
            case _:
                converter.apply_mask(small_mask, huge_picture)
    assert exc_info.value.details == {"width": 1000, "height": 101, "max_pixels": 100_000}
