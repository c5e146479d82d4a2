"""Translates Ollama's API: requests, responses, streams and errors."""
