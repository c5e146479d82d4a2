"""Tests that the kernel blocks hostile nodes under ``isolation: strict``, the default.

If a test could pass merely because its target is missing, it checks from outside that the target
exists.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from moyin.domain.renderer import RenderRequest
from moyin.errors import MoyinError
from moyin.render.comfyui.client import NoResponse
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.paths import HostPathFilter
from moyin.render.comfyui.renderer import ComfyRenderer
from moyin.store.blobs import BlobStore
from tests.integration.render.fixtures import blobs, build_picture_graph, options
from tests.integration.render.hostile import (
    build_hostile_graph,
    read_finding,
    render_graph,
    render_to_end,
    run_hostile_code,
    store_input,
    write_hostile_nodes,
)
from tests.waiting import eventually

__all__ = ["blobs", "options"]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
SECRET = "the stack's secret"
_READ = """
import os
found = {}
for path in given:
    try:
        with open(path, "rb") as file:
            found[path] = file.read(64).decode(errors="replace")
    except OSError as error:
        try:
            found[path] = os.listdir(path)
        except OSError:
            pass
"""
_SEEN = """
import os
found = []
for top in [*given, "/tmp", "/var/tmp", "/dev/shm", os.getcwd(), os.path.expanduser("~")]:
    for place, folders, files in os.walk(top):
        found += [os.path.join(place, name) for name in files]
"""
_WRITE = """
import os
found = []
for path in given:
    try:
        with open(os.path.join(path, "trace"), "w") as file:
            file.write("I was here")
        found.append(path)
    except OSError:
        pass
"""


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a data folder like a stack's; the folder of the ComfyUI process is in it."""
    folder = tmp_path_factory.mktemp("stack")
    folder.joinpath("secret").write_text(SECRET)
    folder.joinpath("moyin.db").write_text(SECRET)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hostile_renderer(
    options: ComfyOptions, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ComfyRenderer]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MOYIN_SECRET", SECRET)
        environment.setenv("ANTHROPIC_API_KEY", SECRET)
        package = write_hostile_nodes(tmp_path_factory.mktemp("nodes"))
        renderer = ComfyRenderer(
            replace(
                options,
                folder=data_folder / "comfyui" / "run" / "comfyui-default-0",
                hidden=(data_folder,),
                custom_nodes=(package,),
                # Far more than anything here needs.
                output_bytes=64 * 1024 * 1024,
            ),
            BlobStore(f"file://{data_folder / 'artifacts'}"),
        )
        await renderer.start()
        await render_graph(renderer, build_picture_graph())
        yield renderer
        await renderer.close()


async def test_node_reads_no_file_of_the_stack_or_the_machine(
    hostile_renderer: ComfyRenderer, data_folder: Path
) -> None:
    sha256 = await hostile_renderer._blobs.put(b"a picture of another tenant's")
    [blob] = data_folder.rglob(sha256)
    # Somebody's prompt that waits for its turn, and one whose files are still to be stored.
    waiting_input = await store_input(hostile_renderer, b"another tenant's input")
    await hostile_renderer.prepare(RenderRequest(prompt_id="x", graph={}, files=waiting_input))
    [staged_file] = (hostile_renderer._folder.staging).iterdir()
    late_folder = hostile_renderer._folder.done / "another"
    late_folder.mkdir()
    late_folder.joinpath("output.png").write_text("another tenant's output")
    private_paths = [
        *(
            data_folder,
            data_folder / "secret",
            data_folder / "moyin.db",
            blob,
            staged_file,
            late_folder / "output.png",
        ),
        *(
            hostile_renderer._folder.path,
            hostile_renderer._folder.log,
            Path.home(),
            Path("/etc/shadow"),
        ),
        *(
            Path("/root"),
            Path("/var/log"),
            Path("/run"),
            Path("/proc/1/environ"),
            Path("/proc/kcore"),
        ),
        Path(f"/proc/{os.getpid()}/environ"),
    ]
    assert sum(path.exists() for path in private_paths) > 10, "they are there"
    findings = await run_hostile_code(
        hostile_renderer, _READ, [str(path) for path in private_paths]
    )
    # Folders on the way to what it may read, with nothing else in them.
    shown_texts = {
        path: names for path, names in findings.items() if names and isinstance(names, str)
    }
    assert {
        path: text for path, text in shown_texts.items() if SECRET in text or "tenant" in text
    } == {}
    assert set(shown_texts) <= {"/proc/1/environ"}, "of the first process in the sandbox"
    assert findings.get(str(data_folder)) in (None, ["comfyui"])
    assert findings.get(str(hostile_renderer._folder.path)) in (None, ["base"])
    late_folder.joinpath("output.png").unlink()
    late_folder.rmdir()


async def test_node_sees_no_users_processes_or_secrets(hostile_renderer: ComfyRenderer) -> None:
    passwd_findings = await run_hostile_code(hostile_renderer, _READ, ["/etc/passwd"])
    assert passwd_findings["/etc/passwd"].startswith("comfyui:x:")
    code = """
import glob, os
found = {
    "environment": dict(os.environ),
    "processes": [open(path, "rb").read().decode() for path in glob.glob("/proc/[0-9]*/environ")
                  if os.access(path, os.R_OK)],
    "count": len(glob.glob("/proc/[0-9]*")),
    "devices": sorted(os.listdir("/dev")),
}
"""
    findings = await run_hostile_code(hostile_renderer, code)
    assert SECRET not in str(findings)
    assert findings["count"] < 5 < len(psutil.pids())
    allowed_devices = {
        *(
            "core",
            "fd",
            "full",
            "null",
            "ptmx",
            "pts",
            "random",
            "shm",
            "stderr",
            "stdin",
            "stdout",
        ),
        *("tty", "urandom", "zero"),
    }
    assert set(findings["devices"]) <= allowed_devices


async def test_node_writes_only_in_its_own_folders(
    hostile_renderer: ComfyRenderer, options: ComfyOptions, data_folder: Path
) -> None:
    package = hostile_renderer._options.custom_nodes[0]
    forbidden_folders = [
        *(
            "/",
            "/etc",
            "/usr",
            "/dev",
            "/proc",
            "/proc/sys/kernel",
            "/sys",
            "/root",
            "/home",
            "/opt",
        ),
        *(str(data_folder), str(options.home), str(options.models), str(package)),
        *(
            str(path)
            for path in (
                hostile_renderer._folder.base,
                hostile_renderer._folder.inputs,
                Path("/var"),
            )
        ),
        str(options.python.parent.parent),
    ]
    assert await run_hostile_code(hostile_renderer, _WRITE, forbidden_folders) == []
    own_folders = [str(path) for path in hostile_renderer._folder.writable]
    # What a node says comes without the machine's paths.
    path_filter = HostPathFilter.create_for_process(hostile_renderer._options)
    assert await run_hostile_code(hostile_renderer, _WRITE, own_folders) == [
        path_filter.hide_known(path) for path in own_folders
    ]


async def test_input_file_can_be_read_but_not_changed(hostile_renderer: ComfyRenderer) -> None:
    """A node must not change an input file, because other prompts use the same file."""
    files = await store_input(hostile_renderer, b"an input of two prompts")
    code = """
import os
found = []
path = os.path.join(folder_paths.get_input_directory(), given)
for way in (lambda: open(path, "r+b").write(b"mine"), lambda: os.chmod(path, 0o777),
            lambda: os.unlink(path), lambda: os.link(path, folder_paths.get_output_directory() + "/l"),
            lambda: os.utime(path)):
    try:
        way()
        found.append("done")
    except OSError as error:
        found.append(type(error).__name__)
found.append(open(path).read())
"""
    [name] = files
    for _ in range(2):
        *write_results, content = await run_hostile_code(hostile_renderer, code, name, files=files)
        assert content == "an input of two prompts"
        assert "done" not in write_results


async def test_node_gains_no_privileges(hostile_renderer: ComfyRenderer) -> None:
    code = """
import ctypes, os, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    return getattr(libc, name)(*arguments) == 0
NEW_USER, NEW_NET = 0x10000000, 0x40000000
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines()
              if ":\\t" in line)
def sandboxed(command):
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False
found = {
    "ids": [status[name].split() for name in ("Uid", "Gid")],
    "capabilities": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"],
    "filtered": status["Seccomp"],
    "ways": {
        "setuid": call("setuid", 0),
        "users": call("unshare", NEW_USER),
        "network": call("unshare", NEW_NET),
        "mount": call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        "chroot": call("chroot", b"/tmp"),
        "trace": libc.ptrace(16, 1, None, None) == 0,
        "su": sandboxed(["su", "-c", "true"]),
        "sandbox": sandboxed(["unshare", "-Ur", "true"]),
        "host": call("socket", 40, 1, 0),
        "clock": call("settimeofday", b"\\0" * 16, None),
        "device": call("mknod", b"/tmp/disk", 0o60666, 8 << 8),
        "core": open("/proc/sys/kernel/core_pattern", "a").closed if os.access(
            "/proc/sys/kernel/core_pattern", os.W_OK) else False,
    },
}
"""
    findings = await run_hostile_code(hostile_renderer, code)
    assert {method for method, succeeded in findings["ways"].items() if succeeded} == set()
    assert findings["capabilities"] == ["0" * 16] * 4
    assert (findings["no_new_privileges"], findings["filtered"]) == ("1", "2")
    assert "0" not in [number for ids in findings["ids"] for number in ids]
    pid = (await hostile_renderer.status()).pid
    assert pid is not None
    assert 0 not in psutil.Process(pid).uids(), "not to the kernel either"


async def test_node_reaches_no_server(hostile_renderer: ComfyRenderer, tmp_path: Path) -> None:
    async def close_connection(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    abstract_socket = f"\0moyin-test-{uuid.uuid4().hex}"
    servers = [
        await asyncio.start_server(close_connection, "0.0.0.0", 0),
        await asyncio.start_unix_server(close_connection, str(tmp_path / "s")),
        await asyncio.start_unix_server(close_connection, abstract_socket),
    ]
    port = servers[0].sockets[0].getsockname()[1]
    hosts = {"127.0.0.1", "0.0.0.0", *(a.address for a in _list_own_addresses())}
    addresses: dict[str, Any] = {
        "tcp": [[host, port] for host in hosts],
        "unix": [str(tmp_path / "s"), abstract_socket],
    }
    code = """
import socket
found = []
for family, addresses in ((socket.AF_INET, map(tuple, given["tcp"])), (socket.AF_UNIX, given["unix"])):
    for address in addresses:
        with socket.socket(family) as client:
            client.settimeout(2)
            try:
                client.connect(address)
                found.append(address)
            except OSError:
                pass
try:
    found += [socket.gethostbyname("example.com")]
except OSError:
    pass
"""
    for path in addresses["unix"]:
        _, writer = await asyncio.open_unix_connection(path)
        writer.close()
    assert await run_hostile_code(hostile_renderer, code, addresses) == []
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_node_processes_do_not_outlive_their_prompt(hostile_renderer: ComfyRenderer) -> None:
    code = """
import os, subprocess, sys, time
place = folder_paths.get_output_directory()
script = "import os, time\\nwhile True:\\n try: open('%s/late', 'a').close()\\n except OSError: pass" % place
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", script])
    os._exit(0)
subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
while not os.path.exists(place + "/late"):
    time.sleep(0.01)
found = True
"""
    assert await run_hostile_code(hostile_renderer, code)
    pid = (await hostile_renderer.status()).pid
    assert pid is not None
    sandbox_init = psutil.Process(pid).parent()
    assert sandbox_init is not None
    running_processes = [
        p for p in sandbox_init.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE
    ]
    assert [p.pid for p in running_processes] == [pid]
    assert await run_hostile_code(
        hostile_renderer, _SEEN, [str(hostile_renderer._folder.base)]
    ) == await _list_visible_files(hostile_renderer)


async def test_node_cannot_read_the_machines_addresses(hostile_renderer: ComfyRenderer) -> None:
    """Connections that ComfyUI accepts belong to the network namespace of the machine."""
    code = """
import array, fcntl, os, socket, struct
found, denied = [], 0
for name in os.listdir("/proc/self/fd"):
    try:
        if not os.readlink("/proc/self/fd/" + name).startswith("socket:"):
            continue
        buffer = array.array("B", bytes(4096))
        request = struct.pack("iP", 4096, buffer.buffer_info()[0])
        answer = fcntl.ioctl(int(name), 0x8912, request)
        found.append(buffer.tobytes()[:struct.unpack("iP", answer)[0]].hex())
    except PermissionError:
        denied += 1
    except OSError:
        pass
found = [denied, found]
"""
    denied_count, interfaces = await run_hostile_code(hostile_renderer, code)
    assert (denied_count > 1, interfaces) == (True, []), "the socket, and a connection at least"


async def test_the_next_tenant_finds_no_trace(
    hostile_renderer: ComfyRenderer, data_folder: Path
) -> None:
    files_before = await _list_visible_files(hostile_renderer)
    files = await store_input(hostile_renderer, b"Ada's input")
    writable_folders = [
        *map(str, hostile_renderer._folder.writable),
        "/tmp",
        "/var/tmp",
        "/dev/shm",
    ]
    code = f"{_WRITE}\nfound = os.listdir(folder_paths.get_input_directory() + '/moyin')"
    assert await run_hostile_code(hostile_renderer, code, writable_folders, files=files) == [
        Path(next(iter(files))).name
    ]
    assert (
        await run_hostile_code(hostile_renderer, _SEEN, [str(hostile_renderer._folder.base)])
        == files_before
    )
    assert not list(data_folder.rglob("trace")), "nor is it kept"


async def test_thread_that_outlives_its_prompt_leaves_no_files(
    hostile_renderer: ComfyRenderer,
) -> None:
    """Files that such a thread writes are neither visible to the next prompt nor stored.

    The thread is started by a node and keeps writing after its prompt has ended.
    """
    files_before = await _list_visible_files(hostile_renderer)
    code = """
import threading, time
place = folder_paths.get_output_directory()
stop = kept["stop"] = threading.Event()
kept["wrote"] = threading.Event()
def late():
    while not kept.get("go"):
        time.sleep(0.01)
    open(place + "/late", "w").write("mine")
    kept["wrote"].set()
kept["thread"] = threading.Thread(target=late, daemon=True)
kept["thread"].start()
"""
    await run_hostile_code(hostile_renderer, code)
    (hostile_renderer._folder.base / "output" / "early").write_text(
        "written since the prompt ended"
    )
    assert (
        await run_hostile_code(hostile_renderer, _SEEN, [str(hostile_renderer._folder.base)])
        == files_before
    )
    await run_hostile_code(hostile_renderer, "kept['go'] = True\nkept['wrote'].wait(10)")
    assert (
        await run_hostile_code(hostile_renderer, _SEEN, [str(hostile_renderer._folder.base)])
        == files_before
    )


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("os.symlink(given['secret'], place + '/trap.png')", "trap.png"),
        ("os.symlink(given['folder'], place + '/way')", "way/secret"),
        ("os.mkfifo(place + '/trap.png')", "trap.png"),
        ("os.makedirs(place + '/trap.png')", "trap.png"),
        ("__import__('socket').socket(1).bind(place + '/trap.png')", "trap.png"),
        ("pass", "../../../../../secret"),
        ("open(place + '/trap.png', 'w').write('x'); os.chmod(place, 0)", "../secret"),
    ],
)
async def test_links_and_pipes_in_the_output_are_harmless(
    hostile_renderer: ComfyRenderer, data_folder: Path, statement: str, name: str
) -> None:
    code = f"""
import os
place = folder_paths.get_output_directory()
{statement}
subfolder, _, filename = given["name"].rpartition("/")
files = [{{"filename": filename, "subfolder": subfolder, "type": "output"}}]
"""
    arguments: dict[str, Any] = {
        "secret": str(data_folder / "secret"),
        "folder": str(data_folder),
        "name": name,
    }
    # A missing file is tried again without ComfyUI's cache; a name with ".." is refused at once.
    expected = "has no place inside its folder" if ".." in name else "does not exist"
    with pytest.raises(MoyinError, match=expected):
        await render_graph(hostile_renderer, build_hostile_graph(code, arguments))
    assert (await render_graph(hostile_renderer, build_picture_graph())).files, (
        "the next prompt is rendered"
    )
    assert not [
        p
        for p in (data_folder / "artifacts").rglob("*")
        if p.is_file() and SECRET in p.read_text(errors="replace")
    ]


async def test_a_node_cannot_pretend_that_its_prompt_has_ended(
    hostile_renderer: ComfyRenderer,
) -> None:
    files = await store_input(hostile_renderer, b"the next tenant's input")
    requests = [
        RenderRequest(prompt_id=str(uuid.uuid4()), graph=build_hostile_graph(_PRETEND, "input")),
        RenderRequest(prompt_id=str(uuid.uuid4()), graph=build_picture_graph(), files=files),
    ]
    first_task, second_task = [
        asyncio.create_task(render_to_end(hostile_renderer, request)) for request in requests
    ]
    assert read_finding((await first_task).values) == []
    assert (await second_task).files


_PRETEND = """
import os, time
from comfy_execution.utils import get_executing_context
from server import PromptServer
told = {"prompt_id": get_executing_context().prompt_id, "node": None}
PromptServer.instance.send_sync("executing", told)
found = []
top = os.path.join(folder_paths.get_input_directory(), "moyin")
over = time.monotonic() + 3
while time.monotonic() < over and not found:
    found = os.listdir(top)
    time.sleep(0.01)
"""
_ESCAPE = """
import time
from comfy_execution.utils import get_executing_context
from server import PromptServer
prompt_id = get_executing_context().prompt_id
messages = [("execution_success", {"prompt_id": prompt_id})]
status = {"status_str": "success", "completed": True, "messages": messages}
entry = {"prompt": [], "outputs": {}, "meta": {}, "status": status}
PromptServer.instance.prompt_queue.history[prompt_id] = entry
PromptServer.instance.send_sync("executing", {"prompt_id": prompt_id, "node": None})
while True:
    try:
        time.sleep(3600)
    except BaseException:
        pass
"""


async def test_a_prompt_that_forges_its_end_fails_only_itself(
    hostile_renderer: ComfyRenderer, options: ComfyOptions, tmp_path: Path
) -> None:
    packages = hostile_renderer._options.custom_nodes
    renderer = ComfyRenderer(
        replace(options, folder=tmp_path / "run", custom_nodes=packages, progress_timeout=2),
        hostile_renderer._blobs,
    )
    await renderer.start()
    try:
        await render_graph(renderer, build_hostile_graph(_ESCAPE))
        pid_before = (await renderer.status()).pid
        with pytest.raises(NoResponse) as exc_info:
            await render_graph(renderer, build_picture_graph())
        # It is worth another try, and not held against the prompt.
        assert exc_info.value.retryable
        assert exc_info.value.details == {}
        await render_graph(renderer, build_picture_graph())
        assert (await renderer.status()).pid != pid_before
    finally:
        await renderer.close()


async def test_file_that_would_fill_the_disk_is_refused(hostile_renderer: ComfyRenderer) -> None:
    code = """
try:
    with open(folder_paths.get_output_directory() + "/big", "wb") as file:
        file.truncate(1 << 40)
    found = "done"
except OSError as error:
    found = error.strerror
"""
    assert await run_hostile_code(hostile_renderer, code) == "File too large"


async def test_validation_reveals_no_file_of_the_running_prompt(
    hostile_renderer: ComfyRenderer,
) -> None:
    """The options of nodes that load files must not list the files of the running prompt."""
    files = await store_input(hostile_renderer, b"Ada's input")
    code = """
import os, time
for place in (folder_paths.get_output_directory(), folder_paths.get_temp_directory()):
    open(place + "/adas-file.png", "w").close()
while not os.path.exists(given):
    time.sleep(0.02)
"""
    go_file = hostile_renderer._folder.scratch / "go"
    render_task = asyncio.create_task(
        run_hostile_code(hostile_renderer, code, str(go_file), files=files)
    )
    output_path = hostile_renderer._folder.base / "output" / "adas-file.png"
    await eventually(output_path.exists)
    node_info = json.loads(await hostile_renderer.get("/object_info") or b"")
    go_file.touch()
    await render_task
    for node in ("LoadImage", "LoadImageMask", "LoadImageOutput"):
        assert "adas" not in str(node_info[node])
        assert Path(next(iter(files))).name not in str(node_info[node])


async def test_comfyui_has_no_port(hostile_renderer: ComfyRenderer) -> None:
    pid = (await hostile_renderer.status()).pid
    assert pid is not None
    listening_sockets = [
        c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN
    ]
    sandbox_pids = {pid, *(p.pid for p in psutil.Process(pid).parents()[:2])}
    assert not [c for c in listening_sockets if c.pid in sandbox_pids]
    socket_path = hostile_renderer._folder.path / "comfyui.sock"
    assert socket_path.stat().st_mode & 0o777 == 0o600
    assert socket_path.parent.stat().st_mode & 0o777 == 0o700


async def test_a_process_that_is_killed_takes_its_sandbox_along(
    hostile_renderer: ComfyRenderer,
) -> None:
    session, pid = hostile_renderer._supervisor.session, (await hostile_renderer.status()).pid
    assert pid is not None
    process = psutil.Process(pid)
    sandbox_processes = [process, *process.parents()[:2]]
    process.send_signal(signal.SIGKILL)
    _, running_processes = await asyncio.to_thread(psutil.wait_procs, sandbox_processes, 10)
    assert [p for p in running_processes if p.pid != os.getpid()] == []
    # A prompt that the renderer submits before it notices the end is lost with the process.
    await eventually(lambda: hostile_renderer._supervisor.session is not session)
    assert (await render_graph(hostile_renderer, build_picture_graph())).files


def _list_own_addresses() -> list[Any]:
    interface_addresses = [a for addresses in psutil.net_if_addrs().values() for a in addresses]
    return [a for a in interface_addresses if a.family == socket.AF_INET]


async def _list_visible_files(renderer: ComfyRenderer) -> list[str]:
    """Run a prompt that lists every file it can see, and return their paths."""
    await render_graph(renderer, build_picture_graph())
    visible_files: list[str] = await run_hostile_code(renderer, _SEEN, [str(renderer._folder.base)])
    assert visible_files, "the bridge at least"
    return visible_files
