"""The embedded stack: Valkey, Temporal, Ray and our Serve apps as one supervised thing.

`launch.up` starts a supervisor process that owns the others; they die with it, and every process
below it carries ``MOYIN_STACK=<data folder>`` in its environment, so that nothing is left behind.
"""
