"""State, one owner each: SQL (jobs, keys, usage), blobs (artifacts), Valkey (events)."""
