"""Sends webhooks, signed by the Standard Webhooks scheme and never into private networks."""
