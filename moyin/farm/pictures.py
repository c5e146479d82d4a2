"""Pictures as ComfyUI's ``/view`` and mask editor want them. Blocks: for threads."""

from __future__ import annotations

import io
import re

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from moyin.errors import InvalidRequest

__all__ = ["channel", "masked", "preview"]

# What decoding one may cost: some 400 MB.
_MAX_PIXELS = 100_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_PREVIEW = re.compile(r"(webp|jpeg)?[^;]{0,16}(?:;(\d{1,3}))?")
_QUALITY = 90


def preview(data: bytes, asked: str, wanted: str) -> tuple[bytes, str]:
    """A smaller copy and its media type.

    Args:
        asked: ``webp`` or ``jpeg``, and a quality: ``webp;75``.
        wanted: the channels; without transparency: ``rgb``.

    Raises:
        InvalidRequest: it is no picture that can be read, ``asked`` is nonsense, or the format that
            it asks for has no pictures of this size.
    """
    match = _PREVIEW.fullmatch(asked)
    if match is None:
        raise InvalidRequest("preview must be such as webp;90", field="preview")
    kind = match[1] if match[1] and "a" not in wanted else "webp"
    quality = min(100, int(match[2] or _QUALITY))
    picture = _opened(data)
    if kind == "jpeg" or wanted == "rgb":
        picture = picture.convert("RGB")
    elif picture.mode not in ("RGB", "RGBA"):
        picture = picture.convert("RGBA")
    return _written(picture, kind.upper(), quality=quality), f"image/{kind}"


def channel(data: bytes, wanted: str) -> bytes:
    """A PNG of the colours (``rgb``) or of the transparency (``a``) alone.

    Raises:
        InvalidRequest: it is no picture that can be read.
    """
    picture = _opened(data)
    if wanted == "rgb":
        return _written(picture.convert("RGB"), "PNG")
    alpha = Image.new("RGBA", picture.size)
    source = picture.convert("RGBA").getchannel("A")
    alpha.putalpha(source)
    return _written(alpha, "PNG")


def masked(original: bytes, mask: bytes) -> bytes:
    """A PNG of the original with the mask's transparency; what was written into it stays.

    Raises:
        InvalidRequest: one is no picture that can be read, or they differ in size.
    """
    picture, alpha = _opened(original), _opened(mask).convert("RGBA").getchannel("A")
    if picture.size != alpha.size:
        raise InvalidRequest("the mask must have the size of its picture", field="image")
    kept = PngInfo()
    for name, text in getattr(picture, "text", {}).items():
        kept.add_text(name, text)
    merged = picture.convert("RGBA")
    merged.putalpha(alpha)
    return _written(merged, "PNG", pnginfo=kept, compress_level=4)


def _opened(data: bytes) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data), formats=_FORMATS)
        if picture.width * picture.height > _MAX_PIXELS:
            raise InvalidRequest("the picture is too large to be changed", field="filename")
        picture.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InvalidRequest("this is no picture that can be read", field="filename") from error
    except Image.DecompressionBombError as error:
        raise InvalidRequest("the picture is too large to be changed", field="filename") from error
    return picture


def _written(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format=kind, **options)
    except (OSError, ValueError) as error:
        # WebP ends at 16,383 pixels a side, JPEG at 65,500.
        raise InvalidRequest(f"the picture can't be told as {kind}", field="preview") from error
    return buffer.getvalue()
