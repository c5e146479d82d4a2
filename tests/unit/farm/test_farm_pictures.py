from __future__ import annotations

import io

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from moyin.errors import InvalidRequest
from moyin.farm import pictures


def png(mode: str = "RGBA", size: tuple[int, int] = (4, 2), **text: str) -> bytes:
    color = (10, 20, 30, 128)[: len(mode)]
    kept = PngInfo()
    for name, value in text.items():
        kept.add_text(name, value)
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG", pnginfo=kept)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("asked", "channels", "kind", "mode"),
    [
        ("webp", "rgb", "image/webp", "RGB"),
        ("webp;30", "rgba", "image/webp", "RGBA"),
        ("jpeg;90", "rgb", "image/jpeg", "RGB"),
        # JPEG has no transparency, and what is no format is WebP.
        ("jpeg", "rgba", "image/webp", "RGBA"),
        ("gif", "rgb", "image/webp", "RGB"),
    ],
)
def test_a_preview_has_the_format_that_was_asked_for(
    asked: str, channels: str, kind: str, mode: str
) -> None:
    shown, told = pictures.preview(png(), asked, channels)
    picture = opened(shown)
    assert told == kind == f"image/{(picture.format or '').lower()}"
    assert (picture.mode, picture.size) == (mode, (4, 2))


def test_a_picture_of_another_kind_has_a_preview_too() -> None:
    buffer = io.BytesIO()
    Image.new("P", (3, 3)).save(buffer, "GIF")
    assert opened(pictures.preview(buffer.getvalue(), "webp", "rgba")[0]).size == (3, 3)


def test_a_channel_is_a_picture_of_it_alone() -> None:
    assert opened(pictures.channel(png(), "rgb")).getpixel((0, 0)) == (10, 20, 30)
    assert opened(pictures.channel(png(), "a")).getpixel((0, 0)) == (0, 0, 0, 128)
    assert opened(pictures.channel(png("RGB"), "a")).getpixel((0, 0)) == (0, 0, 0, 255)


def test_a_mask_lends_its_transparency_and_the_text_stays() -> None:
    merged = opened(pictures.masked(png("RGB", prompt="{}"), png()))
    assert merged.getpixel((3, 1)) == (10, 20, 30, 128)
    assert merged.text == {"prompt": "{}"}  # type: ignore[attr-defined]


def test_what_can_not_be_done_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="size"):
        pictures.masked(png(), png(size=(2, 4)))
    with pytest.raises(InvalidRequest, match="no picture"):
        pictures.channel(b"not a picture", "rgb")
    with pytest.raises(InvalidRequest, match="no picture"):
        pictures.preview(png()[:40], "webp", "rgb")
    with pytest.raises(InvalidRequest, match="preview"):
        pictures.preview(png(), "webp;many", "rgb")


@pytest.mark.parametrize(("asked", "width"), [("webp", 16_384), ("jpeg", 65_501)])
def test_a_strip_that_is_too_long_for_the_format_is_refused(asked: str, width: int) -> None:
    with pytest.raises(InvalidRequest, match=f"as {asked.upper()}"):
        pictures.preview(png("RGB", (width, 1)), asked, "rgb")


def test_a_huge_picture_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_MAX_PIXELS", 7)
    with pytest.raises(InvalidRequest, match="too large"):
        pictures.channel(png(), "rgb")
