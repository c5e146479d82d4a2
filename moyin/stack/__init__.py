"""Runs Valkey, Temporal, Ray and the Serve apps of one machine under a supervisor.

`launch.start_stack` starts the supervisor process, which starts the other processes; these end when
the supervisor ends. All processes have ``MOYIN_STACK=<data folder>`` in their environment, by which
`moyin down` finds the processes of a supervisor that was killed.
"""
