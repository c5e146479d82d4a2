"""Wire formats of text: OpenAI, Anthropic and Ollama.

Each protocol translates to and from `moyin.domain.chat`, never to another protocol.
"""
