"""Tests in a pseudo-terminal that pictures are shown by the graphics protocol that it supports."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from moyin.cli.pictures import PictureProtocol, detect_protocol, encode_picture
from tests.terminal import run_in_terminal

_PROGRAM = (
    "import sys; from pathlib import Path; from moyin.cli.artifacts import print_files; "
    "print_files([Path(sys.argv[1])], show=True); print('end')"
)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "dawn.png"
    Image.linear_gradient("L").resize((40, 20)).convert("RGB").save(path)
    return path


def show_in_terminal(path: Path, reply: bytes, **variables: str) -> bytes:
    return run_in_terminal(_PROGRAM, str(path), reply=reply, variables=variables).output


@pytest.mark.parametrize(
    ("reply", "variables", "expected_sequence"),
    [
        (b"\x1b_Gi=1;OK\x1b\\\x1b[?62c", {}, b"\x1b_Ga=T,f=100,q=2,m=0;"),
        (b"\x1b[?62;4;22c", {}, b"\x1bPq"),
        (b"\x1b[?62;22c", {}, None),
        (b"", {"TERM_PROGRAM": "iTerm.app"}, b"\x1b]1337;File=inline=1"),
        (b"\x1b[?62c", {"TERM_PROGRAM": "iTerm.app", "TMUX": "x"}, None),
    ],
)
def test_terminal_gets_pictures_that_it_can_show(
    picture: Path, reply: bytes, variables: dict[str, str], expected_sequence: bytes | None
) -> None:
    output = show_in_terminal(picture, reply, **variables)
    if expected_sequence is None:
        assert not re.search(rb"\x1bP|\x1b_Ga|\x1b]1337", output)
    else:
        assert expected_sequence in output
    assert str(picture).encode() in output
    assert output.endswith(b"end\r\n")


def test_piped_output_has_no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert detect_protocol({"TERM": "xterm-kitty"}) is None


def test_kitty_chunks_carry_the_picture() -> None:
    picture = Image.effect_noise((200, 200), 90)
    sequences = list(encode_picture(picture, PictureProtocol.KITTY))
    chunks = [re.fullmatch(r"\x1b_G([^;]*);(.*)\x1b\\", sequence) for sequence in sequences]
    assert len(chunks) > 1
    assert [chunk[1][-3:] for chunk in chunks if chunk] == ["m=1"] * (len(chunks) - 1) + ["m=0"]
    assert all(len(chunk[2]) <= 4096 for chunk in chunks if chunk)
    picture_file = base64.b64decode("".join(chunk[2] for chunk in chunks if chunk))
    assert Image.open(io.BytesIO(picture_file)).tobytes() == picture.tobytes()


def test_sixels_carry_the_picture() -> None:
    picture = Image.new("RGB", (20, 13), (255, 0, 0))
    picture.paste((0, 0, 255), (5, 3, 9, 8))
    decoded_picture = decode_sixels("".join(encode_picture(picture, PictureProtocol.SIXEL)))
    assert decoded_picture.tobytes() == picture.tobytes()


def decode_sixels(sixels: str) -> Image.Image:
    """Decode sixels as a terminal does, and return the picture."""
    header = re.match(r'\x1bPq"1;1;(\d+);(\d+)', sixels)
    assert header is not None
    image = Image.new("RGB", (int(header[1]), int(header[2])))
    colours: dict[int, tuple[int, ...]] = {}
    colour, x, y = (0, 0, 0), 0, 0
    for token in re.findall(r"#\d+;2;\d+;\d+;\d+|#\d+|!\d+.|[$\-?-~]", sixels[header.end() : -2]):
        if token[0] == "#":
            number, *values = map(int, token[1:].split(";"))
            if values:
                colours[number] = tuple(round(v * 2.55) for v in values[1:])
            else:
                colour = colours[number]  # type: ignore[assignment]
        elif token == "$":
            x = 0
        elif token == "-":
            x, y = 0, y + 6
        else:
            repeat_count = int(token[1:-1]) if token[0] == "!" else 1
            mask = ord(token[-1]) - 63
            for row in (row for row in range(6) if mask >> row & 1):
                image.paste(colour, (x, y + row, x + repeat_count, y + row + 1))
            x += repeat_count
    return image
