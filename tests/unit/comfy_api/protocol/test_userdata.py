from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.comfy_api.protocol.userdata import (
    list_folder,
    list_folder_v2,
    normalize_path,
    parse_paths,
)
from moyin.domain.identity import UserFile
from moyin.errors import InvalidRequest, MoyinError, PathNotAllowed, UserFileNotFound

MOMENT = datetime(2026, 1, 2, tzinfo=UTC)


def make_file(path: str) -> UserFile:
    return UserFile(path=path, size=3, created=MOMENT, modified=MOMENT)


FILES = [
    make_file("comfy.settings.json"),
    make_file("workflows/a.json"),
    make_file("workflows/b/c.json"),
]


@pytest.mark.parametrize(
    ("raw_path", "expected_paths"),
    [
        ("workflows%2Fa.json", ("workflows/a.json", None)),
        ("workflows/a.json", ("workflows/a.json", None)),
        ("workflows%252Fa.json", ("workflows/a.json", None)),  # encoded twice
        ("a%20b/move/c%2Fd", ("a b", "c/d")),
        ("x%2Fmove%2Fy", ("x/move/y", None)),
        ("%C3%BC.json", ("ü.json", None)),
        ("50%25.json", ("50%.json", None)),
        ("a//b.json", ("a/b.json", None)),
        ("workflows%2F.index.json", ("workflows/.index.json", None)),
    ],
)
def test_paths_are_parsed_from_the_undecoded_url(
    raw_path: str, expected_paths: tuple[str, str | None]
) -> None:
    assert parse_paths(raw_path) == expected_paths


@pytest.mark.parametrize(
    "raw_path",
    [
        "..", "../x", "..%2Fx", "%2e%2e%2fx", "%252e%252e%252fx", "a%2F..%2Fb", "a/../b", ".",
        "%2Fetc%2Fpasswd", "/etc/passwd", "a%5C..%5Cb", "C%3A%5Cx", "a%00b", "a%0Ab", "a/move/..%2Fb",
        "../a/move/b", "%FF", "%25FF",
    ],
)  # fmt: skip
def test_paths_that_lead_out_of_the_folder_are_rejected(raw_path: str) -> None:
    with pytest.raises(PathNotAllowed):
        parse_paths(raw_path)


@pytest.mark.parametrize("path", ["", "a" * 600, "a" * 300])
def test_empty_and_too_long_paths_are_rejected(path: str) -> None:
    with pytest.raises(InvalidRequest):
        normalize_path(path)


@given(st.text(max_size=60))
def test_accepted_paths_stay_within_the_folder(text: str) -> None:
    try:
        path = normalize_path(text)
    except MoyinError:
        return
    assert not path.startswith("/") and "\\" not in path and "\0" not in path
    assert not {"", ".", ".."} & set(path.split("/"))


def test_a_listing_contains_one_folder() -> None:
    def list_names(**kwargs: bool) -> object:
        flags = {"recurse": False, "full_info": False, "split": False, **kwargs}
        return list_folder(FILES, "workflows", **flags)

    assert list_names() == ["a.json"]
    assert list_names(recurse=True) == ["a.json", "b/c.json"]
    assert list_names(recurse=True, split=True) == [
        ["a.json", "a.json"],
        ["b/c.json", "b", "c.json"],
    ]
    info = {"path": "a.json", "size": 3, "modified": 1767312000.0, "created": 1767312000.0}
    assert list_names(full_info=True, split=True) == [info]
    with pytest.raises(UserFileNotFound):
        list_folder(FILES, "work", recurse=True, full_info=False, split=False)


def test_the_v2_listing_has_folders_first() -> None:
    assert [(entry["type"], entry["path"]) for entry in list_folder_v2(FILES, "")] == [
        ("directory", "workflows/b"), ("directory", "workflows"), ("file", "workflows/a.json"),
        ("file", "workflows/b/c.json"), ("file", "comfy.settings.json"),
    ]  # fmt: skip
    assert [entry["path"] for entry in list_folder_v2(FILES, "workflows")] == [
        "workflows/b", "workflows/a.json", "workflows/b/c.json",
    ]  # fmt: skip
    assert list_folder_v2([], "") == []
    with pytest.raises(UserFileNotFound):
        list_folder_v2(FILES, "nowhere")
    with pytest.raises(InvalidRequest):
        list_folder_v2(FILES, "comfy.settings.json")
