"""Provides the HTTP client of Moyin's own API.

The command line uses it, and so do apps that call the gateway: to run the steps of jobs, to serve
gRPC, and to serve the images API by render jobs.
"""
