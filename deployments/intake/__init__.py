"""Contains the optional Serve app ``intake``, which accepts jobs from message queues."""
