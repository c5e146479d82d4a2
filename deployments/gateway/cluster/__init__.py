"""Shows operators what runs on the cluster, and tenants the load of the pools that they may use.

`sources.py` asks Ray, the pools and Temporal, `snapshot.py` joins their answers, `feeds.py` shares
what was read among all viewers, and `bodies.py` has the JSON.
"""
