"""Translates OpenAI's Responses API to `moyin.domain.chat`; no back end needs to support it."""
