"""Translates the API formats of OpenAI, Anthropic and Ollama to `moyin.domain.chat` and back.

No protocol is translated directly to another protocol.
"""
