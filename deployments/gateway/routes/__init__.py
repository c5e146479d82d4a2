"""Contains the gateway's HTTP routes, which parse requests, call `moyin`, and build responses.

The ``name`` of a route keeps the OpenAPI operation id by which generated clients call the route.
"""
