"""Runs the servers and apps of a stack, as a process (``python -m moyin.stack.supervisor``)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Iterable

from moyin.errors import StackError
from moyin.render.comfyui.install import find_comfyui
from moyin.stack import apps, ray, temporal, valkey
from moyin.stack.options import Options
from moyin.stack.patience import wait_patiently
from moyin.stack.ports import require_free_ports
from moyin.stack.service import Service, run_command
from moyin.stack.service_supervisor import ServiceSupervisor
from moyin.stack.stand_in import StandIn
from moyin.stack.state import PartState, PartStatus, Phase, StackState, SupervisorLock, write_state
from moyin.system.logfile import LogFile
from moyin.system.processes import end_processes

_log = logging.getLogger(__name__)
_APPS = "apps"
_DEPLOY_SECONDS = 240.0
_RAY = "ray"


class Supervisor:
    """Runs the whole stack and publishes its state in a file."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._state = StackState(
            pid=os.getpid(),
            ports=dict(options.ports.items()),
            addresses=_list_addresses(options),
            notes=_list_notes(options),
        )
        self._data_preparation: asyncio.Task[None] | None = None
        self._service_supervisors: list[ServiceSupervisor] = []

    async def run(self) -> None:
        """Run the stack until SIGTERM or SIGINT, or raise `StackError` if it cannot start."""
        self._options.layout.prepare()
        lock = SupervisorLock(self._options.layout.lock)
        lock.acquire()
        try:
            await self._run_locked()
        except Exception as error:
            self._state.error = str(error) or type(error).__name__
            self._set_phase(Phase.FAILED)
            raise
        else:
            self._set_phase(Phase.STOPPED)
        finally:
            lock.release()

    async def _run_locked(self) -> None:
        self._set_phase(Phase.STARTING)
        # Children of an earlier supervisor that was killed may still run.
        ended_count = await asyncio.to_thread(end_processes, self._options.stack_id)
        if ended_count:
            _log.warning("ended %d processes of an earlier supervisor", ended_count)
        require_free_ports(self._options.ports, ignored_ports=self._options.unused_ports)
        if self._options.runs_valkey:
            valkey.write_config(self._options)
        ray.prepare_files(self._options)
        stop_event = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, stop_event.set)
        try:
            await self._supervise_services(stop_event)
        finally:
            await asyncio.to_thread(end_processes, self._options.stack_id)
            await asyncio.to_thread(self._options.layout.remove_runtime_files)

    async def _supervise_services(self, stop_event: asyncio.Event) -> None:
        self._data_preparation = asyncio.create_task(self._prepare_data())
        self._service_supervisors = [
            self._create_supervisor(service) for service in self._create_services()
        ]
        self._state.parts[_APPS] = PartState()
        stand_in_task = asyncio.create_task(StandIn(self._options).run())
        supervisor_tasks = {
            asyncio.create_task(service_supervisor.run()): service_supervisor
            for service_supervisor in self._service_supervisors
        }
        stop_task = asyncio.create_task(stop_event.wait())
        done_tasks, _ = await asyncio.wait(
            {stop_task, stand_in_task, *supervisor_tasks}, return_when=asyncio.FIRST_COMPLETED
        )
        failures = [task.exception() for task in done_tasks - {stop_task}]
        self._set_phase(Phase.STOPPING)
        stand_in_task.cancel()
        await asyncio.gather(stand_in_task, return_exceptions=True)
        if self._state.ready_after is not None and not failures:
            await apps.delete_apps(self._options)
        # In reverse order, because Ray's apps write to Temporal and Valkey while they stop.
        for task in reversed(supervisor_tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        stop_task.cancel()
        self._data_preparation.cancel()
        await asyncio.gather(stop_task, self._data_preparation, return_exceptions=True)
        for failure in failures:
            if failure is not None:
                raise failure

    def _create_services(self) -> Iterable[Service]:
        if self._options.runs_valkey:
            yield valkey.create_service(self._options)
        if self._options.runs_temporal:
            yield temporal.create_service(self._options)
        yield ray.create_service(self._options)

    def _create_supervisor(self, service: Service) -> ServiceSupervisor:
        part = self._state.parts[service.name] = PartState()
        return ServiceSupervisor(
            service,
            stack_id=self._options.stack_id,
            log=LogFile(self._options.layout.get_log_path(service.name)),
            part=part,
            on_change=self._update_phase,
            after_ready=self._deploy_apps if service.name == _RAY else None,
        )

    async def _prepare_data(self) -> None:
        """Run `moyin.stack.first_key`, which creates the schema, the first key and the profile."""
        command = (sys.executable, "-m", "moyin.stack.first_key")
        status, output = await run_command(command, self._options.environ)
        if status != 0:
            raise StackError(
                "moyin.stack.first_key, which creates the database and the first API key, failed: "
                f"{output.strip()[-500:]}"
            )

    async def _deploy_apps(self) -> None:
        self._set_apps_status(PartStatus.WAITING, "")
        assert self._data_preparation is not None
        await self._data_preparation
        for service_supervisor in self._service_supervisors:
            await service_supervisor.ready.wait()
        try:
            # After a restart of Ray, deploy the configuration that was deployed last, which may not
            # be the one that this stack was started with.
            deploy = apps.deploy_apps if self._state.ready_after is None else apps.redeploy_apps
            await wait_patiently(
                deploy(
                    self._options, lambda text: self._set_apps_status(PartStatus.STARTING, text)
                ),
                _DEPLOY_SECONDS,
                lambda: self._state.parts[_APPS].detail,
            )
        except TimeoutError:
            detail = self._state.parts[_APPS].detail
            raise StackError(
                f"the apps made no progress for {_DEPLOY_SECONDS:.0f} s: {detail} (see `moyin logs ray`)"
            ) from None
        self._set_apps_status(PartStatus.UP, self._state.parts[_APPS].detail)
        if self._state.ready_after is None:
            self._state.ready_after = time.time() - self._state.started_at
        self._update_phase()

    def _set_apps_status(self, status: PartStatus, detail: str) -> None:
        part = self._state.parts[_APPS]
        if (part.status, part.detail) != (status, detail):
            part.status, part.detail, part.since = status, detail, time.time()
            self._update_phase()

    def _update_phase(self) -> None:
        """Derive the phase from the status of the parts, and publish the state."""
        if self._state.phase in (Phase.STARTING, Phase.READY, Phase.DEGRADED):
            parts = self._state.parts
            if parts[_RAY].status != PartStatus.UP and _APPS in parts:
                parts[_APPS].status = PartStatus.WAITING
            if all(part.status == PartStatus.UP for part in parts.values()):
                self._state.phase = Phase.READY
            elif self._state.ready_after is not None:
                self._state.phase = Phase.DEGRADED
        self._publish_state()

    def _set_phase(self, phase: Phase) -> None:
        self._state.phase = phase
        self._publish_state()

    def _publish_state(self) -> None:
        """Write the state file; a failure is only logged, because it must not stop the services."""
        try:
            write_state(self._options.layout.state, self._state)
        except OSError as error:
            _log.warning("cannot write the state file %s: %s", self._options.layout.state, error)


def _list_addresses(options: Options) -> dict[str, str]:
    ports = options.ports
    addresses = {
        "gateway": options.settings.door,
        "console": f"{options.settings.door}/console/",
        "api docs": f"{options.settings.door}/docs",
        "ray dashboard": ray.build_dashboard_url(options),
    }
    if options.runs_temporal:
        addresses["temporal ui"] = f"http://127.0.0.1:{ports.temporal_ui}"
    return addresses


def _list_notes(options: Options) -> list[str]:
    notes = []
    if not options.gpus:
        notes.append("no GPU found: Ray gets one logical GPU, and ComfyUI runs on the CPU")
    try:
        find_comfyui(options.settings)
    except StackError as error:
        notes.append(f"renders will not start: {error.message}")
    return notes


def run_supervisor(options: Options) -> None:
    """Run the supervisor until SIGTERM or SIGINT, or raise `StackError` if that fails."""
    os.umask(0o077)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    asyncio.run(Supervisor(options).run())


def main() -> int:
    try:
        run_supervisor(Options.read())
    except StackError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
