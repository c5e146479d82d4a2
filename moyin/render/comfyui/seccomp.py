"""Builds the seccomp filter of system calls for confined ComfyUI processes.

Namespaces restrict neither rarely used parts of the kernel nor AF_VSOCK sockets, which connect to
the host of a virtual machine from any network namespace. The filter therefore denies the system
calls that Flatpak and Docker deny, except for those that a renderer needs. A denied call fails with
EPERM, so that programs can use another call instead of crashing.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass

# Constants of <linux/bpf_common.h>, <linux/seccomp.h> and <linux/audit.h>.
_LOAD, _JUMP_EQUAL, _JUMP_ATLEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _NOTIFY = 0x7FFF0000, 0x00050000, 0x7FC00000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
_X32 = 0x40000000
# The flags CLONE_NEW* of <linux/sched.h>: time, mount, cgroup, UTS, IPC, user, PID and network.
_NAMESPACES = (
    0x80 | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
)
_THREAD = 0x10000  # CLONE_THREAD
# The first and the last of the ioctls of <linux/sockios.h> that concern interfaces, and of those of
# <linux/wireless.h>. The kernel reads only the lower 32 bits of an ioctl's number, as filters do.
_INTERFACE_IOCTLS = ((0x8910, 0x89FF), (0x8B00, 0x8BFF))
# The allowed socket families: AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK.
_FAMILIES = (1, 2, 10, 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Machine:
    """The system call numbers of one architecture.

    Attributes:
        audit: the kernel's AUDIT_ARCH number of the architecture.
        clone: the number of the call `clone`, which must not create namespaces.
        socket: the number of the call `socket`, which may open sockets of a few families only.
        ioctl: the number of the call `ioctl`, which must not read the interfaces of a machine.
        seccomp: the number of the call `seccomp`.
        forks: the numbers of the calls other than `clone` that create processes.
        denied: the numbers of the calls that are always denied.
        has_x32: True if the architecture also has the calls of x32, which the filter hides.
    """

    audit: int
    clone: int
    socket: int
    ioctl: int
    seccomp: int
    forks: tuple[int, ...]
    denied: tuple[int, ...]
    has_x32: bool = False


# The denied calls, with their numbers on x86_64 and aarch64; None if the call is missing there.
_DENIED: dict[str, tuple[int, int | None]] = {
    # Calls about mounts and namespaces.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "mount_setattr": (442, 442),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "unshare": (272, 97), "setns": (308, 268),
    # Calls that access other processes.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438),
    # Calls that keep memory which belongs to no process.
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186),
    # Calls with a history of vulnerabilities that no renderer needs.
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "lookup_dcookie": (212, 18),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # Calls that change or inspect the machine as a whole.
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "syslog": (103, 116),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "vhangup": (153, 58), "nfsservctl": (180, 42),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162),
    # Calls that exist only on x86.
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "_sysctl": (156, None),
    "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None),
    "create_module": (174, None), "get_kernel_syms": (177, None), "query_module": (178, None),
}  # fmt: skip
_CLONE3 = 435
_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        clone=56,
        socket=41,
        ioctl=16,
        seccomp=317,
        forks=(57, 58),  # fork and vfork
        denied=tuple(x86 for x86, _ in _DENIED.values()),
        has_x32=True,
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        clone=220,
        socket=198,
        ioctl=29,
        seccomp=277,
        forks=(),
        denied=tuple(arm for _, arm in _DENIED.values() if arm is not None),
    ),
}


def build_filter(machine: str | None = None, *, hides_interfaces: bool = True) -> bytes | None:
    """Return the filter as an array of ``struct sock_filter``, the format that bubblewrap reads.

    Returns None if the architecture, by default that of this machine, is not supported.

    Args:
        hides_interfaces: whether the ioctls that read network interfaces are denied. A connection
            that ComfyUI accepts belongs to the network namespace of its client, which is that of
            the machine, so these ioctls would tell the machine's addresses.
    """
    numbers = _MACHINES.get(machine or platform.machine())
    return None if numbers is None else _assemble(numbers, hides_interfaces)


def build_fork_filter(machine: str | None = None) -> tuple[int, bytes] | None:
    """Return the number of the call `seccomp`, and the filter that ``sandbox_init.py`` installs.

    The filter notifies that script when a process creates another one, but not when it creates a
    thread. Returns None if the architecture is not supported.
    """
    numbers = _MACHINES.get(machine or platform.machine())
    if numbers is None:
        return None
    notify_instruction = _make_instruction(_RETURN, _NOTIFY)
    program = [_make_instruction(_LOAD, _NUMBER)]
    for call_number in numbers.forks:
        program += [_make_instruction(_JUMP_EQUAL, call_number, 0, 1), notify_instruction]
    program += [
        _make_instruction(_JUMP_EQUAL, numbers.clone, 0, 3),
        _make_instruction(_LOAD, _FIRST_ARGUMENT),
        _make_instruction(_JUMP_SET, _THREAD, 1, 0),
        notify_instruction,
        _make_instruction(_RETURN, _ALLOW),
    ]
    return numbers.seccomp, b"".join(program)


def _assemble(machine: _Machine, hides_interfaces: bool) -> bytes:
    deny_instruction = _make_instruction(_RETURN, _ERRNO | errno.EPERM)
    missing_instruction = _make_instruction(_RETURN, _ERRNO | errno.ENOSYS)
    allow_instruction = _make_instruction(_RETURN, _ALLOW)
    program = [
        _make_instruction(_LOAD, _ARCHITECTURE),
        _make_instruction(_JUMP_EQUAL, machine.audit, 1, 0),
        deny_instruction,  # 32-bit calls have other numbers
        _make_instruction(_LOAD, _NUMBER),
    ]
    if machine.has_x32:
        program += [_make_instruction(_JUMP_ATLEAST, _X32, 0, 1), missing_instruction]
    for call_number in machine.denied:
        program += [_make_instruction(_JUMP_EQUAL, call_number, 0, 1), deny_instruction]
    # A filter can't read clone3's flags, which are in memory. The C library falls back to clone.
    program += [_make_instruction(_JUMP_EQUAL, _CLONE3, 0, 1), missing_instruction]
    program += [
        _make_instruction(_JUMP_EQUAL, machine.clone, 0, 4),
        _make_instruction(_LOAD, _FIRST_ARGUMENT),
        _make_instruction(_JUMP_SET, _NAMESPACES, 0, 1),
        deny_instruction,
        allow_instruction,
        _make_instruction(_JUMP_EQUAL, machine.socket, 0, len(_FAMILIES) + 3),
        _make_instruction(_LOAD, _FIRST_ARGUMENT),
        *(
            _make_instruction(_JUMP_EQUAL, family, len(_FAMILIES) - position, 0)
            for position, family in enumerate(_FAMILIES)
        ),
        deny_instruction,
        allow_instruction,
    ]
    if hides_interfaces:
        program += [
            _make_instruction(_JUMP_EQUAL, machine.ioctl, 0, 3 * len(_INTERFACE_IOCTLS) + 1),
            _make_instruction(_LOAD, _SECOND_ARGUMENT),
        ]
        for first, last in _INTERFACE_IOCTLS:
            program += [
                _make_instruction(_JUMP_ATLEAST, first, 0, 2),
                _make_instruction(_JUMP_ATLEAST, last + 1, 1, 0),
                deny_instruction,
            ]
    program.append(allow_instruction)
    return b"".join(program)


def _make_instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
