"""A mock model with three API formats, whose answers depend on the request."""
