"""Reports the cluster's state to operators, and the load of their render pools to tenants.

`sources.py` reads the state from Ray, the pools and Temporal, `snapshot.py` combines it,
`feeds.py` shares what was read among all viewers, and `bodies.py` defines the JSON bodies.
"""
