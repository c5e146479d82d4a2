"""Runs Valkey, Temporal, Ray and the Serve apps of one machine under a supervisor.

`launch.up` starts the supervisor process. It owns the other processes, which end with it. Each of
them carries ``MOYIN_STACK=<data folder>`` in its environment, so that leftovers can be found.
"""
