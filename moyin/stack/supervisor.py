"""The supervisor: starts the servers together, deploys the apps, keeps all of it running."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Iterable

from moyin.errors import StackError
from moyin.render.comfyui.install import locate
from moyin.stack import apps, ray, temporal, valkey
from moyin.stack.lock import SupervisorLock
from moyin.stack.options import Options
from moyin.stack.ports import require_free
from moyin.stack.service import Service, run_to_end
from moyin.stack.service_supervisor import ServiceSupervisor
from moyin.stack.state import Part, PartStatus, Phase, StackState, write
from moyin.system.logfile import LogFile
from moyin.system.processes import end_all

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)
_APPS = "apps"
_DEPLOY_SECONDS = 240.0
_RAY = "ray"


class Supervisor:
    """Owns the stack from its first process to its last."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._state = StackState(
            pid=os.getpid(),
            ports=dict(options.ports.named()),
            addresses=_addresses(options),
            notes=_notes(options),
        )
        self._prepared: asyncio.Task[None] | None = None
        self._keepers: list[ServiceSupervisor] = []

    async def run(self) -> None:
        """Run the stack until SIGTERM or SIGINT.

        Raises:
            StackError: it can't be started; everything is stopped again by then.
        """
        self._options.layout.prepare()
        lock = SupervisorLock(self._options.layout.lock)
        lock.acquire()
        try:
            await self._run_locked()
        except Exception as error:
            self._state.error = str(error) or type(error).__name__
            self._enter(Phase.FAILED)
            raise
        else:
            self._enter(Phase.STOPPED)
        finally:
            lock.release()

    async def _run_locked(self) -> None:
        self._enter(Phase.STARTING)
        # After a kill -9 of our predecessor its children are ending, or hang.
        left = await asyncio.to_thread(end_all, self._options.stack_id)
        if left:
            _log.warning("ended %d processes of an earlier run", left)
        require_free(self._options.ports, skip=self._options.unused_ports)
        if self._options.own_valkey:
            valkey.prepare(self._options)
        ray.prepare(self._options)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            await self._supervise(stop)
        finally:
            await asyncio.to_thread(end_all, self._options.stack_id)
            await asyncio.to_thread(self._options.layout.tidy)

    async def _supervise(self, stop: asyncio.Event) -> None:
        self._prepared = asyncio.create_task(self._prepare_data())
        self._keepers = [self._keeper(service) for service in self._services()]
        self._state.parts[_APPS] = Part()
        running = {asyncio.create_task(keeper.run()): keeper for keeper in self._keepers}
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({stopped, *running}, return_when=asyncio.FIRST_COMPLETED)
        failures = [task.exception() for task in done - {stopped}]
        self._enter(Phase.STOPPING)
        if self._state.ready_after is not None and not failures:
            await apps.withdraw(self._options)
        # In reverse: the apps' Ray first, while Temporal and Valkey still take what it says.
        for task in reversed(running):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        stopped.cancel()
        self._prepared.cancel()
        await asyncio.gather(stopped, self._prepared, return_exceptions=True)
        for failure in failures:
            if failure is not None:
                raise failure

    def _services(self) -> Iterable[Service]:
        if self._options.own_valkey:
            yield valkey.service(self._options)
        if self._options.own_temporal:
            yield temporal.service(self._options)
        yield ray.service(self._options)

    def _keeper(self, service: Service) -> ServiceSupervisor:
        part = self._state.parts[service.name] = Part()
        return ServiceSupervisor(
            service,
            stack_id=self._options.stack_id,
            log=LogFile(self._options.layout.log(service.name)),
            part=part,
            changed=self._changed,
            after_ready=self._deploy if service.name == _RAY else None,
        )

    async def _prepare_data(self) -> None:
        """Schema, first key and profile, in a child: this process stays small for its long life."""
        command = (sys.executable, "-m", "moyin.stack.first_key")
        status, output = await run_to_end(command, self._options.environ)
        if status != 0:
            raise StackError(f"the data folder cannot be prepared: {output.strip()[-500:]}")

    async def _deploy(self) -> None:
        self._apps(PartStatus.WAITING, "")
        assert self._prepared is not None
        await self._prepared
        for keeper in self._keepers:
            await keeper.ready.wait()
        try:
            # Once it has run: what is in force by then, not what this stack was started with.
            hand_over = apps.deploy if self._state.ready_after is None else apps.redeploy
            async with asyncio.timeout(_DEPLOY_SECONDS):
                await hand_over(self._options, lambda text: self._apps(PartStatus.STARTING, text))
        except TimeoutError:
            detail = self._state.parts[_APPS].detail
            raise StackError(
                f"the apps did not start within {_DEPLOY_SECONDS:.0f} s: {detail}"
            ) from None
        self._apps(PartStatus.UP, self._state.parts[_APPS].detail)
        if self._state.ready_after is None:
            self._state.ready_after = time.time() - self._state.started_at
        self._changed()

    def _apps(self, status: PartStatus, detail: str) -> None:
        part = self._state.parts[_APPS]
        if (part.status, part.detail) != (status, detail):
            part.status, part.detail, part.since = status, detail, time.time()
            self._changed()

    def _changed(self) -> None:
        """Derive the phase from the parts and publish the state."""
        if self._state.phase in (Phase.STARTING, Phase.READY, Phase.DEGRADED):
            parts = self._state.parts
            if parts[_RAY].status != PartStatus.UP and _APPS in parts:
                parts[_APPS].status = PartStatus.WAITING
            if all(part.status == PartStatus.UP for part in parts.values()):
                self._state.phase = Phase.READY
            elif self._state.ready_after is not None:
                self._state.phase = Phase.DEGRADED
        self._publish()

    def _enter(self, phase: Phase) -> None:
        self._state.phase = phase
        self._publish()

    def _publish(self) -> None:
        """What can't be told (the disk is full) is no reason to stop what runs."""
        try:
            write(self._options.layout.state, self._state)
        except OSError as error:
            _log.warning("the state is not told: %s", error)


def _addresses(options: Options) -> dict[str, str]:
    ports = options.ports
    addresses = {
        "gateway": options.settings.door,
        "api docs": f"{options.settings.door}/docs",
        "ray dashboard": ray.dashboard(options),
    }
    if options.own_temporal:
        addresses["temporal ui"] = f"http://127.0.0.1:{ports.temporal_ui}"
    return addresses


def _notes(options: Options) -> list[str]:
    notes = []
    if not options.gpus:
        notes.append("no GPU found: Ray gets one logical GPU, ComfyUI runs on the CPU")
    try:
        locate(options.settings)
    except StackError as error:
        notes.append(f"renders wait: {error.message}")
    return notes
