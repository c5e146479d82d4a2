"""Stores the state of all apps: in a SQL database, in Valkey, and as blobs in a folder or in S3."""
