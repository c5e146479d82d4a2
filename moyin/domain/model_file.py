"""Defines `ModelFile`, a model on a server's disk as the server describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFile:
    """A model on the disk of a server, as the server describes it.

    Attributes:
        name: the server's name of the model, with its tag, such as ``llama3.2:latest``.
        digest: SHA-256 of the model's manifest, in hexadecimal.
        size: size in bytes.
        modified_at: time of the last change, in ISO 8601.
        capabilities: the model's abilities in Ollama's terms, such as ``completion`` and ``tools``.
        context: the maximum number of tokens of prompt and answer together; None if unknown.
        details: format, family, number of parameters and quantization, with Ollama's names as keys.
        description: further members of Ollama's ``/api/show``, such as the template.
        weights: name of the blob with the weights, which several models may share; empty if
            unknown.
    """

    name: str
    digest: str
    size: int
    modified_at: str
    capabilities: frozenset[str]
    context: int | None
    details: Mapping[str, Any] = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
