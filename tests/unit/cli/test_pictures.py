"""Tests in a pseudo-terminal that pictures are shown with the protocol the terminal supports."""

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
    ("reply", "variables", "mark"),
    [
        (b"\x1b_Gi=1;OK\x1b\\\x1b[?62c", {}, b"\x1b_Ga=T,f=100,q=2,m=0;"),
        (b"\x1b[?62;4;22c", {}, b"\x1bPq"),
        (b"\x1b[?62;22c", {}, None),
        (b"", {"TERM_PROGRAM": "iTerm.app"}, b"\x1b]1337;File=inline=1"),
        (b"\x1b[?62c", {"TERM_PROGRAM": "iTerm.app", "TMUX": "x"}, None),
    ],
)
def test_terminal_gets_pictures_that_it_can_show(
    picture: Path, reply: bytes, variables: dict[str, str], mark: bytes | None
) -> None:
    output = show_in_terminal(picture, reply, **variables)
    if mark is None:
        assert not re.search(rb"\x1bP|\x1b_Ga|\x1b]1337", output)
    else:
        assert mark in output
    assert str(picture).encode() in output
    assert output.endswith(b"end\r\n")


def test_piped_output_has_no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert detect_protocol({"TERM": "xterm-kitty"}) is None


def test_kitty_chunks_carry_the_picture() -> None:
    noise = Image.effect_noise((200, 200), 90)
    pieces = list(encode_picture(noise, PictureProtocol.KITTY))
    parts = [re.fullmatch(r"\x1b_G([^;]*);(.*)\x1b\\", piece) for piece in pieces]
    assert len(parts) > 1
    assert [part[1][-3:] for part in parts if part] == ["m=1"] * (len(parts) - 1) + ["m=0"]
    assert all(len(part[2]) <= 4096 for part in parts if part)
    data = base64.b64decode("".join(part[2] for part in parts if part))
    assert Image.open(io.BytesIO(data)).tobytes() == noise.tobytes()


def test_sixels_carry_the_picture() -> None:
    picture = Image.new("RGB", (20, 13), (255, 0, 0))
    picture.paste((0, 0, 255), (5, 3, 9, 8))
    decoded_picture = decode_sixels("".join(encode_picture(picture, PictureProtocol.SIXEL)))
    assert decoded_picture.tobytes() == picture.tobytes()


def decode_sixels(text: str) -> Image.Image:
    """Decode sixels as a terminal does, and return the picture."""
    head = re.match(r'\x1bPq"1;1;(\d+);(\d+)', text)
    assert head is not None
    image = Image.new("RGB", (int(head[1]), int(head[2])))
    colours: dict[int, tuple[int, ...]] = {}
    colour, x, y = (0, 0, 0), 0, 0
    for token in re.findall(r"#\d+;2;\d+;\d+;\d+|#\d+|!\d+.|[$\-?-~]", text[head.end() : -2]):
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
            count = int(token[1:-1]) if token[0] == "!" else 1
            mask = ord(token[-1]) - 63
            for row in (row for row in range(6) if mask >> row & 1):
                image.paste(colour, (x, y + row, x + count, y + row + 1))
            x += count
    return image
