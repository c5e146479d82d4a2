"""Shows operators what runs on the cluster, and tenants the load of the pools that they may use.

`sources.py` reads the state from Ray, the pools and Temporal, `snapshot.py` combines it,
`monitor.py` shares one snapshot among all viewers, and `bodies.py` defines the JSON bodies.
"""
