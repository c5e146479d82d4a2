"""Translates the requests, responses, streams and errors of Anthropic's messages API."""
