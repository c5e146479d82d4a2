"""Creates deployments, runtimes and fleets with fake back ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moyin.domain.backend import ApiFormat
from moyin.domain.money import FREE_TARIFF, GpuRate, Tariff
from moyin.domain.needs import Model
from moyin.domain.operation import FREE_UNITS, Operation, UnitRates
from moyin.http.breaker import Breaker
from moyin.system.slots import Slots
from moyin.testing.backends import FakeBackend
from moyin.text.routing.backend_runtime import BackendRuntime
from moyin.text.routing.catalog import Alias, Catalog, ModelDeployment
from moyin.text.routing.compiled_route import CompiledRoute
from moyin.text.routing.fleet import Fleet

# 2026-10-24, in days since 1970-01-01.
DAY = 20_750
ALL_SCOPES = ("tools", "vision", "schema", "thinking")


class Clock:
    """A clock that shows the time that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_deployment(
    backend: str,
    tariff: Tariff = FREE_TARIFF,
    *,
    model: str = "",
    context: int = 1000,
    api_format: ApiFormat | None = ApiFormat.OPENAI,
    configured: bool = True,
    abilities: tuple[str, ...] = ALL_SCOPES,
    quality: int = 0,
    residency: str = "cloud",
    gpu: GpuRate | None = None,
    operations: tuple[Operation, ...] = (),
    unit_rates: UnitRates = FREE_UNITS,
) -> ModelDeployment:
    ability_flags: dict[str, Any] = dict.fromkeys(abilities, True)
    return ModelDeployment(
        backend=backend,
        model=Model(
            name=model or f"{backend}-model",
            upstream="x",
            context=context,
            tariff=tariff,
            quality=quality,
            gpu=gpu,
            operations=frozenset(operations),
            chat=False if operations else None,
            unit_rates=unit_rates,
            **ability_flags,
        ),
        api_format=api_format,
        configured=configured,
        key_env=f"{backend.upper()}_KEY",
        residency=residency,
    )


def make_runtime(
    name: str, backend: FakeBackend | None = None, *, limit: int | None = None
) -> BackendRuntime:
    clock = Clock()
    backend = backend or FakeBackend()
    return BackendRuntime(
        name=name,
        backend=backend,
        pass_through=backend,
        timeout=5,
        breaker=Breaker(clock),
        slots=Slots(limit, max_waiting=2, patience=1),
        clock=clock,
    )


def make_fleet(
    deployments: Sequence[ModelDeployment], *, limit: int | None = None, **fleet_settings: object
) -> Fleet:
    runtimes = {
        deployment.backend: make_runtime(deployment.backend, limit=limit)
        for deployment in deployments
        if deployment.configured
    }
    aliases: dict[str, Alias] = fleet_settings.pop("aliases", {})  # type: ignore[assignment]
    catalog = Catalog(deployments=tuple(deployments), aliases=aliases)
    return Fleet(catalog=catalog, runtimes=runtimes, **fleet_settings)  # type: ignore[arg-type]


def make_route(
    fleet: Fleet, name: str = "auto", owner: str = "ada", residency: tuple[str, ...] | None = None
) -> CompiledRoute:
    return fleet.get_route(name, owner, residency, ApiFormat.OPENAI, DAY)
