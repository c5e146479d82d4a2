"""Provides the HTTP client of Moyin's own API, which steps, gRPC, images and the CLI use."""
