"""Reports the cluster's state to operators, and the load of render pools to tenants.

`sources.py` reads the state from Ray, the pools and Temporal, `snapshot.py` combines it, `feeds.py`
shares each reading among all viewers, and `bodies.py` defines the JSON bodies.
"""
