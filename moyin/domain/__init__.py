"""Holds the domain: frozen dataclasses without a framework and without a wire format."""
