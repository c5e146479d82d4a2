"""Translates the requests, responses, streams and errors of OpenAI's API."""
