"""Fixtures that several modules share."""

from __future__ import annotations

from tests.integration.models_fixtures import llama

__all__ = ["llama"]
