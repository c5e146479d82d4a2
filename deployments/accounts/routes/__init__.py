"""Defines the HTTP routes of the accounts app, which call the services in `moyin/access`.

An explicit ``operation_id`` keeps the OpenAPI id by which generated clients call the route.
"""
