from __future__ import annotations

import stat
from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.stack.profile import Profile, read_profile, write_profile

PROFILE = Profile(url="http://127.0.0.1:8000", api_key="moyin_ab_c-d")


def test_profile_is_private_and_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    write_profile(path, PROFILE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_profile(path, {}) == PROFILE
    assert [file.name for file in tmp_path.iterdir()] == ["profile.toml"]


def test_saving_again_makes_a_public_file_private(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.touch(mode=0o644)
    write_profile(path, PROFILE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_environment_overrides_the_profile(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    write_profile(path, PROFILE)
    profile = read_profile(path, {"MOYIN_URL": "https://farm.example/", "MOYIN_API_KEY": "other"})
    assert profile == Profile(url="https://farm.example", api_key="other")


def test_missing_url_error_explains_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="start Moyin with `moyin up`"):
        read_profile(tmp_path / "profile.toml", {})


def test_invalid_profile_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text("url = ")
    with pytest.raises(StackError, match=r"profile\.toml is not valid TOML"):
        read_profile(path, {})


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "farm.example", "ftp://farm.example"])
def test_url_without_http_scheme_is_rejected(tmp_path: Path, url: str) -> None:
    with pytest.raises(StackError, match="MOYIN_URL must begin with http://"):
        read_profile(tmp_path / "profile.toml", {"MOYIN_URL": url})
