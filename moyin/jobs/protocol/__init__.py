"""Implements Moyin's own jobs API: its shapes, and their translation to and from the domain."""
