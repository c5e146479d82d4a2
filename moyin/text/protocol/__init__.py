"""Translates the API formats of OpenAI, Anthropic and Ollama to the domain and back.

Each protocol is translated to and from `moyin.domain.chat`, never to another protocol.
"""
