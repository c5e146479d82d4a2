"""Durable jobs, as far as they need neither Temporal nor a web framework."""
