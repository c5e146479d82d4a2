"""What the process that converts pictures makes of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from moyin.render.imaging import worker

BOUNDS = {"pixels": 100_000, "preview_pixels": 100_000}


def png(mode: str = "RGBA", size: tuple[int, int] = (4, 2), **text: str) -> bytes:
    color = (10, 20, 30, 128)[: len(mode)]
    kept = PngInfo()
    for name, value in text.items():
        kept.add_text(name, value)
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG", pnginfo=kept)
    return buffer.getvalue()


class Desk:
    """A folder in which a picture lies and one is made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def convert(self, source: bytes, mask: bytes = b"", **order: Any) -> Image.Image:
        files = {name: str(self._folder / name) for name in ("source", "mask", "target")}
        Path(files["source"]).write_bytes(source)
        Path(files["mask"]).write_bytes(mask)
        worker.convert({**files, **order}, BOUNDS)
        with Image.open(files["target"]) as picture:
            picture.load()
        return picture

    def preview(self, source: bytes, kind: str = "webp", channels: str = "") -> Image.Image:
        order = {"action": "preview", "format": kind, "quality": 90, "channels": channels}
        return self.convert(source, **order)

    def channel(self, source: bytes, channels: str) -> Image.Image:
        return self.convert(source, action="channel", channels=channels)

    def masked(self, source: bytes, mask: bytes) -> Image.Image:
        return self.convert(source, mask, action="mask")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.mark.parametrize(
    ("kind", "channels", "mode"),
    [("webp", "rgb", "RGB"), ("webp", "", "RGBA"), ("jpeg", "", "RGB"), ("jpeg", "rgb", "RGB")],
)
def test_a_preview_has_the_format_that_was_asked_for(
    desk: Desk, kind: str, channels: str, mode: str
) -> None:
    picture = desk.preview(png(), kind, channels)
    assert (picture.format, picture.mode, picture.size) == (kind.upper(), mode, (4, 2))


def test_a_picture_of_another_kind_has_a_preview_too(desk: Desk) -> None:
    buffer = io.BytesIO()
    Image.new("P", (3, 3)).save(buffer, "GIF")
    assert desk.preview(buffer.getvalue()).size == (3, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_large_picture_has_a_smaller_preview(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, kind: str, mode: str
) -> None:
    monkeypatch.setitem(BOUNDS, "preview_pixels", 5_000)
    buffer = io.BytesIO()
    Image.new(mode, (400, 200), 77 if mode == "L" else (77, 77, 77)).save(buffer, kind)
    picture = desk.preview(buffer.getvalue(), channels="rgb")
    assert picture.size == (100, 50)
    assert picture.getpixel((50, 25)) == pytest.approx((77, 77, 77), abs=2)


def test_a_channel_is_a_picture_of_it_alone(desk: Desk) -> None:
    assert desk.channel(png(), "rgb").getpixel((0, 0)) == (10, 20, 30)
    assert desk.channel(png(), "a").getpixel((0, 0)) == (0, 0, 0, 128)
    assert desk.channel(png("RGB"), "a").getpixel((0, 0)) == (0, 0, 0, 255)


def test_a_mask_lends_its_transparency_and_the_text_stays(desk: Desk) -> None:
    merged = desk.masked(png("RGB", prompt="{}"), png())
    assert merged.getpixel((3, 1)) == (10, 20, 30, 128)
    assert merged.text == {"prompt": "{}"}  # type: ignore[attr-defined]


def test_what_can_not_be_done_is_refused(desk: Desk) -> None:
    with pytest.raises(worker.Problem, match="size"):
        desk.masked(png(), png(size=(2, 4)))
    with pytest.raises(worker.Problem, match="no picture"):
        desk.channel(b"not a picture", "rgb")
    with pytest.raises(worker.Problem, match="no picture"):
        desk.preview(png()[:40])


@pytest.mark.parametrize(("kind", "width"), [("webp", 16_384), ("jpeg", 65_501)])
def test_a_strip_that_is_too_long_for_the_format_is_refused(
    desk: Desk, kind: str, width: int
) -> None:
    with pytest.raises(worker.Problem, match=f"as {kind.upper()}"):
        desk.preview(png("RGB", (width, 1)), kind)


@pytest.mark.parametrize("action", ["preview", "channel", "mask"])
def test_a_huge_picture_is_not_decoded(desk: Desk, action: str) -> None:
    huge, small = png("1", (1000, 101)), png()
    with pytest.raises(worker.Problem, match="1000 x 101 pixels; at most 100,000") as caught:
        match action:
            case "preview":
                desk.preview(huge)
            case "channel":
                desk.channel(huge, "a")
            case _:
                desk.masked(small, huge)
    assert caught.value.details == {"width": 1000, "height": 101, "max_pixels": 100_000}
