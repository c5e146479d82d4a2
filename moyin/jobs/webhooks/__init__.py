"""Webhooks: signed by the Standard Webhooks scheme and kept out of private networks."""
