"""Translates OpenAI's Responses API, which no back end needs to speak: all goes through the domain."""
