"""Tests that the shipped serve_config.yaml is valid and that the validator finds mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.validate import find_problems
from moyin.stack.apps import load_serve_config
from moyin.stack.ports import Ports

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config() -> Any:
    return yaml.safe_load((ROOT / "serve_config.yaml").read_text())


def _find_app(config: Any, name: str) -> Any:
    return next(app for app in config["applications"] if app["name"] == name)


def _get_models_config(config: Any) -> Any:
    return _find_app(config, "models")["deployments"][0]["user_config"]


def test_shipped_file_is_valid(config: Any) -> None:
    assert list(find_problems(config)) == []


def test_shipped_file_has_five_apps_on_loopback(config: Any) -> None:
    prefixes = {app["name"]: app["route_prefix"] for app in config["applications"]}
    assert prefixes == {
        "gateway": "/",
        "accounts": "/accounts",
        "models": "/v1",
        "workers": None,
        "render-default": None,
    }
    assert config["http_options"]["host"] == "127.0.0.1"
    assert config["http_options"]["port"] == Ports().door


def test_gateway_lists_every_pool(config: Any) -> None:
    pools = {
        app["args"]["pool"] for app in config["applications"] if app["name"].startswith("render-")
    }
    assert set(_find_app(config, "gateway")["args"]["pools"]) == pools


def _set_value(*path: Any) -> Callable[[Any], None]:
    *parents, key, value = path

    def change(target: Any) -> None:
        for parent in parents:
            target = target[parent]
        target[key] = value

    return change


def _rename_models(config: Any) -> None:
    _find_app(config, "models")["deployments"][0]["name"] = "Modles"


def _rename_pool(config: Any) -> None:
    """Rename the only pool to ``big``, so that the gateway's default pool does not exist."""
    del _find_app(config, "gateway")["args"]
    app = _find_app(config, "render-default")
    app["name"], app["args"]["pool"] = "render-big", "big"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_set_value("colour", "red"), "colour: unknown key"),
        (
            _set_value(
                "applications", 3, "deployments", 0, "user_config", "aliases", {"fast": ["smol"]}
            ),
            "applications.models.deployments.Models.user_config: aliases.fast.models: "
            "no back end has a model 'smol'",
        ),
        (_set_value("http_options", "prot", 1), "http_options.prot: unknown key"),
        (
            _set_value("applications", 0, "import_pth", "x"),
            "applications.gateway.import_pth: unknown key",
        ),
        (
            _set_value("applications", 0, "deployments", 0, "num_replica", 2),
            "applications.gateway.deployments.Gateway.num_replica: unknown key",
        ),
        (
            _set_value("applications", 0, "deployments", 0, "ray_actor_options", "num_cpu", 1),
            "applications.gateway.deployments.Gateway.ray_actor_options.num_cpu: unknown key",
        ),
        (
            _set_value("applications", 0, "args", "pool", ["a"]),
            "applications.gateway.args.pool: unknown key",
        ),
        (_set_value("http_options", "port", "high"), "http_options.port: "),
        (
            _set_value("applications", 0, "import_path", "deployments.nowhere:build"),
            "No module named",
        ),
        (
            _set_value("grpc_options", "grpc_servicer_functions", ["moyin.grpc.add"]),
            "grpc_options.grpc_servicer_functions.0: No module named 'moyin.grpc'",
        ),
        (_rename_models, "there is no deployment 'Modles'; the app's deployments are Models"),
        (
            lambda config: _get_models_config(config).update(alias={}),
            "user_config.alias: unknown key; did you mean 'aliases'?",
        ),
        (
            lambda config: _get_models_config(config)["backends"][0]["models"][0].update(ctx=1),
            "ctx: unknown key",
        ),
        (
            lambda config: _get_models_config(config)["routing"].update(explor=0.1),
            "routing.explor: unknown key; did you mean 'explore'?",
        ),
        (
            lambda config: _get_models_config(config)["routing"].update(judge=True),
            "routing.judge: must be a mapping of names to values",
        ),
        (
            lambda config: _get_models_config(config)["routing"].update(judge={"share": 0.1}),
            "routing.judge.model: is missing",
        ),
        (
            lambda config: _get_models_config(config)["routing"].update(hold_streams="sometimes"),
            "routing.hold_streams: must be true or false",
        ),
        (lambda config: config["applications"][0].pop("route_prefix"), "route_prefix: is missing"),
        (
            _set_value("applications", 0, "args", "pools", ["defaul"]),
            "applications.gateway.args.pools: there is no pool 'defaul'; the pools are default",
        ),
        (
            lambda config: _find_app(config, "render-default")["args"].update(larger_pool="lage"),
            "args.larger_pool: there is no pool 'lage'; the pools are default",
        ),
        (
            lambda config: _find_app(config, "render-default")["args"].update(pool="big"),
            ".name: must be 'render-big' for the pool 'big'",
        ),
        (
            lambda config: _find_app(config, "render-default").pop("name"),
            ".name: must be 'render-default' for the pool 'default'",
        ),
        (
            _rename_pool,
            "applications.gateway.args.pools: there is no pool 'default'; the pools are big",
        ),
    ],
)
def test_mistake_in_the_file_is_found(
    config: Any, change: Callable[[Any], None], problem: str
) -> None:
    change(config)
    assert any(problem in line for line in find_problems(config)), list(find_problems(config))


def test_wrong_type_of_pools_is_reported_once(config: Any) -> None:
    _find_app(config, "gateway")["args"]["pools"] = 7
    [problem] = find_problems(config)
    assert problem.startswith("applications.gateway.args.pools: must be a list")


def test_stack_for_text_alone_needs_no_pool(config: Any) -> None:
    config["applications"].remove(_find_app(config, "render-default"))
    assert list(find_problems(config)) == []


def test_loading_changes_only_the_ports(config: Any) -> None:
    ports = Ports.read({}, base=20_000)
    moved_config = load_serve_config(ROOT / "serve_config.yaml", ports)
    assert moved_config["http_options"].pop("port") == 20_000
    assert moved_config["grpc_options"].pop("port") == ports.grpc
    config["http_options"].pop("port")
    config["grpc_options"].pop("port")
    assert moved_config == config
