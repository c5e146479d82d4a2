"""Translates the requests, responses, streams and errors of Ollama's API."""
