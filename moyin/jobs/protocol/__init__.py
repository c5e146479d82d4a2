"""Moyin's own jobs API: shapes in ``wire``, their way to and from the domain in ``translate``."""
