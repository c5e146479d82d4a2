"""Defines the terms of the product as frozen dataclasses, without a framework or a wire format."""
