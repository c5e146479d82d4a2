"""Provides the HTTP client of Moyin's own API, for jobs, gRPC, images and the command line."""
