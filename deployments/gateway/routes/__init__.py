"""Holds the gateway's routes, which parse requests, call a wing of `moyin`, and render responses."""
