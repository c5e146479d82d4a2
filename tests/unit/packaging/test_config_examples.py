"""Tests that the validator of `moyin deploy` accepts the settings in the documents."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
import yaml

from deployments.validate import find_problems
from tests.examples import ROOT, list_blocks, list_pages, read_example

# docs/providers.md has tests of its own, in test_provider_docs.py.
ELSEWHERE = "docs/providers.md"


def read_yaml_example(page: str, name: str) -> Any:
    return yaml.safe_load(textwrap.dedent(read_example(page, name, "yaml")))


@pytest.fixture
def apps() -> dict[str, Any]:
    """Return the apps of the shipped serve_config.yaml, which a test may change."""
    return {app["name"]: app for app in read_shipped_config()["applications"]}


def read_shipped_config() -> Any:
    return yaml.safe_load((ROOT / "serve_config.yaml").read_text())


def check_apps(apps: dict[str, Any]) -> None:
    assert list(find_problems(read_shipped_config() | {"applications": list(apps.values())})) == []


def update_user_config(app: Any, changes: dict[str, Any]) -> None:
    app["deployments"][0].setdefault("user_config", {}).update(changes)


def test_every_example_is_checked() -> None:
    marked_examples = {
        (block.page, block.name)
        for page in list_pages()
        for block in list_blocks(page)
        if block.mark == "tested" and (block.name or "").startswith("config-")
    }
    checked_examples = {(page, name) for page, names in CHECKED.items() for name in names}
    assert {(page, name) for page, name in marked_examples if page != ELSEWHERE} == checked_examples


CHECKED = {
    "docs/accounts.md": {"config-provider"},
    "docs/batches.md": {"config-native"},
    "docs/farm.md": {"config-pool"},
    "docs/isolation.md": {"config-isolation"},
    "docs/ollama.md": {"config-hosts", "config-models"},
    "docs/proxy.md": {"config-routes"},
    "docs/routing.md": {"config-alias"},
    "docs/templates.md": {"config-cache", "config-template"},
}


def test_an_unknown_key_in_the_settings_is_found(apps: dict[str, Any]) -> None:
    apps["render-default"]["args"]["actor"] = 8
    with pytest.raises(AssertionError, match="actor"):
        check_apps(apps)


def test_the_example_of_a_pool_is_valid(apps: dict[str, Any]) -> None:
    [pool] = read_yaml_example("docs/farm.md", "config-pool")
    big_app = apps["render-default"] | {"name": "render-big", "args": {"pool": "big"}}
    apps |= {"render-default": pool, "render-big": big_app}
    apps["gateway"]["args"]["pools"] = ["default", "big"]
    check_apps(apps)


def test_the_example_of_isolation_is_valid(apps: dict[str, Any]) -> None:
    [pool] = read_yaml_example("docs/isolation.md", "config-isolation")
    apps["render-default"]["args"].update(pool["args"])
    check_apps(apps)


def test_the_example_of_a_render_cache_is_valid(apps: dict[str, Any]) -> None:
    apps["render-default"]["args"].update(
        read_yaml_example("docs/templates.md", "config-cache")["args"]
    )
    check_apps(apps)


@pytest.mark.parametrize(
    ("app", "page", "name"),
    [
        ("accounts", "docs/accounts.md", "config-provider"),
        ("gateway", "docs/proxy.md", "config-routes"),
    ],
)
def test_the_example_of_a_user_config_is_valid(
    apps: dict[str, Any], app: str, page: str, name: str
) -> None:
    update_user_config(apps[app], read_yaml_example(page, name)["user_config"])
    check_apps(apps)


@pytest.mark.parametrize(
    ("page", "name"), [("docs/batches.md", "config-native"), ("docs/ollama.md", "config-hosts")]
)
def test_the_example_of_back_ends_is_valid(apps: dict[str, Any], page: str, name: str) -> None:
    update_user_config(apps["models"], read_yaml_example(page, name) | {"aliases": {}})
    check_apps(apps)


def test_the_example_of_ollama_models_is_valid(apps: dict[str, Any]) -> None:
    [ollama] = read_yaml_example("docs/ollama.md", "config-hosts")["backends"]
    ollama |= read_yaml_example("docs/ollama.md", "config-models")
    update_user_config(apps["models"], {"backends": [ollama], "aliases": {}})
    check_apps(apps)


def test_the_example_of_an_alias_is_valid(apps: dict[str, Any]) -> None:
    update_user_config(apps["models"], read_yaml_example("docs/routing.md", "config-alias"))
    check_apps(apps)


def test_the_shown_template_is_a_part_of_the_shipped_example() -> None:
    shown_template = read_yaml_example("docs/templates.md", "config-template")
    whole_template = yaml.safe_load((ROOT / "examples/templates/sdxl.yaml").read_text())
    for section in ("inputs", "graph"):
        assert_is_part(shown_template.pop(section), whole_template[section])
    assert_is_part(shown_template, whole_template)


def assert_is_part(shown_section: dict[str, Any], whole_config: dict[str, Any]) -> None:
    assert shown_section == {key: whole_config[key] for key in shown_section}
