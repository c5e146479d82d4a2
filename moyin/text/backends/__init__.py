"""Adapts model servers to the interface `moyin.domain.backend.ModelBackend`."""
