"""Translates OpenAI's API: requests, responses, streams and errors."""
