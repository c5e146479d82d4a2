"""Checks the app configuration, and the keys, model files, templates and GPUs that it needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moyin.render.templates.catalog import list_template_folders, read_templates
from moyin.stack import apps
from moyin.stack.doctor.result import CheckResult, build_failure, build_ok, build_warning_if
from moyin.stack.options import Options


def check_serve_config(options: Options) -> CheckResult:
    problems = apps.find_config_problems(options.serve_config)
    if problems:
        return build_failure("apps", f"{options.serve_config} is not valid", problems[0])
    return build_ok("apps", f"{options.serve_config} is valid")


def check_shares(options: Options) -> CheckResult:
    """Check that this machine's GPUs suffice for the renderers with which render pools start."""
    # `moyin up` gives Ray one logical GPU on a machine without one.
    free_shares = [1.0] * max(options.gpus, 1)
    unplaced_renderers = []
    shares = apps.find_renderer_shares(options.serve_config)
    for pool, share in sorted(shares, key=lambda item: -item[1]):
        card_index = next((n for n, free in enumerate(free_shares) if free >= share - 1e-9), None)
        if card_index is None:
            unplaced_renderers.append(f"{pool} (gpus: {share:g})")
        else:
            free_shares[card_index] -= share
    return build_warning_if(
        bool(unplaced_renderers),
        "gpu shares",
        f"GPUs: {len(free_shares)}, without room for {', '.join(unplaced_renderers)}"
        if unplaced_renderers
        else "all renderers fit",
        "lower `gpus` or `min_actors` of the pool, unless other nodes have GPUs; a renderer without "
        "a place never starts",
    )


def check_model_keys(options: Options) -> CheckResult:
    """Check that the environment variables with the keys of back ends are set."""
    missing_keys = [
        f"{backend['name']} ({variable})"
        for backend in apps.find_text_backends(options.serve_config)
        if (variable := _find_key_variable(backend, options)) is not None
    ]
    finding = f"missing for {', '.join(missing_keys)}" if missing_keys else "all are set"
    advice = "set the variable before `moyin up`, or remove the back end, which is not called without a key"
    return build_warning_if(bool(missing_keys), "model keys", finding, advice)


def check_model_files(options: Options) -> CheckResult:
    """Check that the model files of embedded llama.cpp servers exist on this machine."""
    paths = [
        Path(str(server["gguf"]))
        for backend in apps.find_text_backends(options.serve_config)
        if isinstance(server := backend.get("server"), dict) and server.get("gguf")
    ]
    missing_files = [str(path) for path in paths if not path.is_file()]
    if not missing_files:
        return build_ok("model files", "none is missing")
    return build_failure(
        "model files",
        f"missing: {', '.join(missing_files)}",
        "put the files there, on every node, or correct `gguf` in the app configuration",
    )


def check_templates(options: Options) -> CheckResult:
    snapshot = read_templates(list_template_folders(options.settings))
    if not snapshot.problems:
        return build_ok("templates", f"{len(snapshot.templates)} are valid")
    finding = f"{len(snapshot.problems)} files are not valid"
    return build_failure("templates", finding, snapshot.problems[0])


def _find_key_variable(backend: Mapping[str, Any], options: Options) -> str | None:
    """Return the variable for a back end's key if it is not set, or None if no key is missing."""
    variable = backend.get("api_key_env")
    if variable is None and backend.get("type") == "anthropic":
        variable = "ANTHROPIC_API_KEY"
        if options.settings.anthropic_api_key:
            return None
    return None if variable is None or os.environ.get(str(variable)) else str(variable)
