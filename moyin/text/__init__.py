"""Answers text requests with the models of several providers.

This package parses and writes the protocols of OpenAI, Anthropic and Ollama, estimates how well
each model would answer, chooses a back end, calls it and records the cost. `deployments/models`
receives the HTTP requests and passes them to `routing/router.py`.
"""
