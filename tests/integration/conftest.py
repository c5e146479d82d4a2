"""Fixtures that several integration tests share."""

from __future__ import annotations

from tests.integration.text.fixtures import llama, llama_vectors

__all__ = ["llama", "llama_vectors"]
