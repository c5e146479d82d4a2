"""Ollama's chat, generate and embed: shapes, translation, streams."""
