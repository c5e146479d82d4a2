"""Creates small videos with FFmpeg's libraries, which the gateway decodes."""

from __future__ import annotations

import io
from typing import cast

import av
from PIL import Image

RED, BLUE = (200, 30, 30), (30, 30, 200)


def make_video(
    container: str = "mp4",
    codec: str = "h264",
    *,
    size: tuple[int, int] = (320, 160),
    pixel_format: str = "yuv420p",
    colors: tuple[tuple[int, int, int], ...] = (RED, BLUE, BLUE),
) -> bytes:
    """Return a video with one frame per colour.

    Args:
        container, codec, pixel_format: FFmpeg's names of the file format, the codec and the pixel
            format.
        size: width and height in pixels.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output_container:
        stream = cast(av.VideoStream, output_container.add_stream(codec, rate=10))
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.thread_count = 1
        for color in colors:
            frame = av.VideoFrame.from_image(Image.new("RGB", size, color))
            output_container.mux(stream.encode(frame))
        output_container.mux(stream.encode())
    return buffer.getvalue()


def make_sound() -> bytes:
    """Return an MP4 without a video stream."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output_container:
        stream = output_container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.rate = 48_000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        output_container.mux(stream.encode(frame))
        output_container.mux(stream.encode())
    return buffer.getvalue()


def make_video_with_false_size(side_pixels: int) -> bytes:
    """Return a QuickTime file whose header declares a square picture but whose frames are empty.

    Args:
        side_pixels: the declared width and height.
    """
    video = bytearray(make_video("mov", "mjpeg", pixel_format="yuvj420p"))
    # The size lies 28 bytes behind the name of the codec in the description of the samples.
    codec_offset = video.index(b"jpeg", video.index(b"stsd"))
    video[codec_offset + 28 : codec_offset + 32] = side_pixels.to_bytes(2, "big") * 2
    frames_start, frames_end = video.index(b"mdat") + 4, video.index(b"moov") - 4
    video[frames_start:frames_end] = bytes(frames_end - frames_start)
    return bytes(video)
