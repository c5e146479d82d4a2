"""Text: which model answers a request, and asking it.

This wing translates the three chat protocols to and from the domain, estimates how well each model
would answer, chooses a back end, calls it and keeps account of the call. It never accepts an HTTP
request itself (`deployments/models` does), and knows nothing of renders. Start reading at
`routing/dispatch.py`.
"""
