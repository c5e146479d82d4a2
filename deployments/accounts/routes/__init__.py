"""Defines the routes of the accounts app, which parse, call a service and render."""
