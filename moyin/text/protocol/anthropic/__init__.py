"""Translates Anthropic's messages: requests, responses, streams and errors."""
