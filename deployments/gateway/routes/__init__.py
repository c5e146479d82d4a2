"""Contains the gateway's HTTP routes, which parse requests, call `moyin`, and build responses.

An explicit ``operation_id`` keeps the OpenAPI id by which generated clients call the route.
"""
