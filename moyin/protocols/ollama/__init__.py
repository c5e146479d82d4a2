"""Ollama's ``/api/chat``, as a back end speaks it."""
