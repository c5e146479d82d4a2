"""Checks the ports, processes left by a crash, the running stack, and servers outside the stack."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

from moyin.errors import ServiceUnavailable, StackError
from moyin.stack.doctor.result import CheckResult, build_failure, build_ok, build_warning
from moyin.stack.launch import read_running_state
from moyin.stack.options import Options
from moyin.stack.ports import (
    Ports,
    choose_free_ports,
    find_free_base,
    read_stored_ports,
    require_free_ports,
    store_ports,
)
from moyin.stack.state import PartStatus, Phase, find_lock_holder
from moyin.system.processes import end_processes, find_processes

_CONNECT_SECONDS = 5


def check_processes(options: Options) -> CheckResult:
    """Check that no processes of this stack are left over without their supervisor."""
    # `read_running_state` is not used, because on a full disk a supervisor has no state file.
    if find_lock_holder(options.layout.lock) is not None:
        return build_ok("processes", "the supervisor owns them")
    process_names = [
        f"{process.name()} ({process.pid})" for process in find_processes(options.stack_id)
    ]
    if not process_names:
        return build_ok("processes", "none runs")
    return build_warning(
        "processes",
        f"left over by a supervisor that was killed: {', '.join(process_names)}",
        "run `moyin down`, which ends them",
        fix="end them",
    )


def end_leftover_processes(options: Options) -> None:
    # `stop_stack` is not used, because it would end a supervisor that has started meanwhile.
    if find_lock_holder(options.layout.lock) is None:
        end_processes(options.stack_id)
        options.layout.remove_runtime_files()


def check_ports(options: Options) -> CheckResult:
    state = read_running_state(options)
    if state is not None:
        return build_ok("ports", f"held by this stack ({state.phase})")
    try:
        require_free_ports(options.ports, ignored_ports=options.unused_ports)
    except StackError as error:
        problem, _, advice = error.message.partition(": ")
        free_base = find_free_base()
        if free_base is not None:
            advice += f" (`moyin up --port-base {free_base}`: all free)"
        free_ports = _choose_ports(options)
        port_texts = ", ".join(f"{port} for {name}" for name, port in free_ports.items())
        fix = (
            f"take free ports instead: {port_texts}; {options.layout.ports} stores them"
            if free_ports
            else ""
        )
        return build_failure("ports", problem, advice, fix=fix)
    return build_ok("ports", f"all free (gateway: {options.ports.door})")


def _choose_ports(options: Options) -> dict[str, int]:
    if options.ports_are_set:
        return {}  # The next `moyin up` would use what the environment sets again.
    try:
        return choose_free_ports(options.ports, ignored_ports=options.unused_ports)
    except StackError:
        return {}  # A port below 1024, which the person who wrote it into the file must change.


def move_ports(options: Options) -> None:
    """Store a free port instead of each port that is in use, for the next `moyin up`."""
    free_ports = choose_free_ports(options.ports, ignored_ports=options.unused_ports)
    if not free_ports:
        raise StackError("no free ports were found: stop other programs, or set MOYIN_PORT_BASE")
    # The file is replaced, so it must also get the ports that are stored in it already.
    ports = {**dict(options.ports.items()), **free_ports}
    defaults = dict(Ports().items())
    store_ports(
        options.layout.ports,
        {name: port for name, port in ports.items() if port != defaults[name]},
    )


def check_moved_ports(options: Options) -> CheckResult:
    """Check the ports as the next `moyin up` will read them."""
    stored_ports = read_stored_ports(options.layout.ports)
    return check_ports(replace(options, ports=Ports.read(stored_ports)))


def check_running_parts(options: Options) -> Iterator[CheckResult]:
    """Check each part of the stack, if the stack runs."""
    state = read_running_state(options)
    if state is None:
        return
    for name, part in state.parts.items():
        if part.status is PartStatus.UP:
            yield build_ok(
                f"{name} runs", f"restarted {part.restarts} times" if part.restarts else "yes"
            )
            continue
        finding = f"{part.status}{f': {part.detail}' if part.detail else ''}"
        if state.phase is Phase.STARTING:
            yield build_warning(f"{name} runs", finding, "wait until `moyin status` says ready")
        else:
            log_name = "supervisor" if name == "apps" else name
            advice = f"it is started again by itself; `moyin logs {log_name}` shows why it ended"
            yield build_failure(f"{name} runs", finding, advice)


def check_servers(options: Options) -> Iterator[CheckResult]:
    """Check that the servers outside the stack respond, if the settings name any."""
    if not options.runs_temporal:
        yield asyncio.run(_check_temporal(options.settings.temporal_address))
    if not options.runs_valkey:
        yield asyncio.run(_check_valkey(options.settings.redis_url))


async def _check_temporal(address: str) -> CheckResult:
    from moyin.jobs.workflows.client import check_address

    advice = "start Temporal, or correct MOYIN_TEMPORAL_ADDRESS; without it no job runs"
    try:
        await check_address(address)
    except ServiceUnavailable:
        return build_failure("temporal server", f"no Temporal responds at {address}", advice)
    return build_ok("temporal server", f"responds at {address}")


async def _check_valkey(url: str) -> CheckResult:
    from redis.exceptions import AuthenticationError, RedisError

    from moyin.store.valkey import connect_cache

    # The URL may have a password.
    address = url.rpartition("@")[2].removeprefix("redis://")
    try:
        async with connect_cache(url, _CONNECT_SECONDS) as client:
            await client.ping()
    except AuthenticationError:
        finding = f"the server at {address} refuses the password"
        return build_failure("valkey server", finding, "correct the password in MOYIN_REDIS_URL")
    except (RedisError, OSError, ValueError):
        advice = "start Valkey, or correct MOYIN_REDIS_URL; without it there is no progress"
        return build_failure("valkey server", f"no Valkey responds at {address}", advice)
    return build_ok("valkey server", f"responds at {address}")
