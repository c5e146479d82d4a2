"""Anthropic messages: shapes, translation, streams."""
