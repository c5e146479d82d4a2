"""Holds the gateway's routes: they parse a request, call a wing of `moyin`, and respond."""
