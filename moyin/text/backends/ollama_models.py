"""Tracks the models on an Ollama host's disk and the abilities of each."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic_core import from_json, to_json

from moyin.domain.model_file import ModelFile
from moyin.errors import BackendUnavailable, MoyinError
from moyin.text.backends.http import HttpClient

DEFAULT_TAG = ":latest"
_SECONDS = 3.0
# The health checks of all back ends wait for the slowest refresh.
_REFRESH_SECONDS = 5.0
# Bounds of the memory used for one host, whose responses are not trusted to be small.
_MAX_MODELS = 1_000
_MAX_DESCRIPTION_BYTES = 64 * 1024
_PARALLEL_REQUESTS = 4
_CONTEXT_PARAMETER = re.compile(r"^num_ctx\s+(\d+)\s*$", re.MULTILINE)
_WEIGHTS = re.compile(r"^FROM\s.*?(sha256-[0-9a-f]{64})\s*$", re.MULTILINE)
# The member `modelfile` is omitted, because it contains paths on the host.
_DESCRIPTION = ("license", "parameters", "template", "system", "model_info", "projector_info")

_log = logging.getLogger(__name__)


class HostModels:
    """The models on the disk of one Ollama host, which `refresh` brings up to date.

    Models that the host forwards to another service are omitted, because their data would leave the
    host.

    Attributes:
        files: the models by their name with its tag; None until the host has answered once.
    """

    def __init__(self) -> None:
        self.files: Mapping[str, ModelFile] | None = None
        self._undescribed: frozenset[str] = frozenset()

    def find(self, name: str) -> ModelFile | None:
        """Return the model with this name, or None; a name without a tag means ``:latest``."""
        return (self.files or {}).get(add_default_tag(name))

    def find_names_sharing_weights(self, names: frozenset[str]) -> frozenset[str]:
        """Return ``names`` plus the names of all models that share their weights."""
        files = (self.files or {}).values()
        weights = {file.weights for file in files if file.weights and file.name in names}
        return names.union(file.name for file in files if file.weights in weights)

    async def refresh(self, http: HttpClient) -> bool:
        """Fetch the host's list of models; return True if it changed.

        Only the abilities of new and changed models are fetched. If that takes too long, the
        abilities fetched so far are kept and the next refresh fetches the rest.

        Raises:
            BackendUnavailable, BackendTimeout, Overloaded, BackendRejected: the call failed.
        """
        listed_models = _parse_listed_models(await http.get("/api/tags", _SECONDS))
        known_files = self.files or {}
        semaphore = asyncio.Semaphore(_PARALLEL_REQUESTS)

        new_files: dict[str, ModelFile | None] = {}

        async def describe_model(listed_model: Mapping[str, Any]) -> None:
            file = known_files.get(listed_model["name"])
            if file is None or not _is_unchanged(file, listed_model):
                async with semaphore:
                    file = await _request_file(http, listed_model) or file
            new_files[listed_model["name"]] = file

        with suppress(TimeoutError):
            async with asyncio.timeout(_REFRESH_SECONDS):
                await asyncio.gather(*map(describe_model, listed_models))
        names = [listed_model["name"] for listed_model in listed_models]
        optional_files = {name: new_files.get(name, known_files.get(name)) for name in names}
        files = {name: file for name, file in optional_files.items() if file is not None}
        undescribed_names = frozenset(names) - files.keys()
        for name in undescribed_names - self._undescribed:
            _log.warning("an Ollama host does not describe its model %r, so it is left out", name)
        self._undescribed = undescribed_names
        has_changed = self.files is None or files != known_files
        self.files = files
        return has_changed


def add_default_tag(name: str) -> str:
    """Return the name with the tag ``:latest`` if it has no tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}{DEFAULT_TAG}"


def _parse_listed_models(body: bytes) -> list[Mapping[str, Any]]:
    try:
        models = from_json(body)["models"] or []
        listed_models = [model for model in models if not model.get("remote_host")]
        if not all(isinstance(entry["name"], str) for entry in listed_models):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BackendUnavailable(
            "the Ollama server's response to /api/tags is malformed; check its URL in the configuration"
        ) from None
    return listed_models[:_MAX_MODELS]


def _is_unchanged(file: ModelFile, listed_model: Mapping[str, Any]) -> bool:
    return (file.digest, file.modified_at) == (
        listed_model.get("digest"),
        listed_model.get("modified_at"),
    )


async def _request_file(http: HttpClient, listed_model: Mapping[str, Any]) -> ModelFile | None:
    """Fetch the description of a model in the host's list; return None if that fails.

    Args:
        listed_model: the model as the host's list describes it.
    """
    name = listed_model["name"]
    try:
        deadline = asyncio.get_running_loop().time() + _SECONDS
        details = from_json(await http.post("/api/show", to_json({"model": name}), deadline))
        return _build_file(listed_model, details)
    except (MoyinError, ValueError, KeyError, TypeError, AttributeError):
        # The model may have been removed meanwhile; if not, the next refresh tries again.
        return None


def _build_file(listed_model: Mapping[str, Any], details: Mapping[str, Any]) -> ModelFile:
    description = {name: details[name] for name in _DESCRIPTION if details.get(name)}
    if len(to_json(description)) > _MAX_DESCRIPTION_BYTES:
        description = {"model_info": _shorten_model_info(description.get("model_info") or {})}
    weights_match = _WEIGHTS.search(str(details.get("modelfile") or ""))
    return ModelFile(
        name=listed_model["name"],
        digest=str(listed_model.get("digest") or ""),
        size=int(listed_model.get("size") or 0),
        modified_at=str(listed_model.get("modified_at") or ""),
        capabilities=frozenset(map(str, details.get("capabilities") or ("completion",))),
        context=_find_context(details),
        # `parent_model` is a path on the host if the model was created from a file.
        details={
            **(details.get("details") or listed_model.get("details") or {}),
            "parent_model": "",
        },
        description=description,
        weights=weights_match[1] if weights_match else "",
    )


def _find_context(details: Mapping[str, Any]) -> int | None:
    """Return the context length in tokens: the Modelfile's ``num_ctx``, else the trained length."""
    num_ctx_match = _CONTEXT_PARAMETER.search(str(details.get("parameters") or ""))
    if num_ctx_match:
        return int(num_ctx_match[1]) or None
    info = details.get("model_info") or {}
    architecture = info.get("general.architecture")
    length = info.get(f"{architecture}.context_length")
    return length if isinstance(length, int) and length > 0 else None


def _shorten_model_info(model_info: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's metadata without long values: only numbers and short strings."""
    return {
        name: value
        for name, value in model_info.items()
        if isinstance(value, int | float) or (isinstance(value, str) and len(value) < 200)
    }
