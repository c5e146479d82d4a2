"""Fixtures that several modules share."""

from __future__ import annotations

from tests.integration.models_fixtures import llama, llama_vectors

__all__ = ["llama", "llama_vectors"]
