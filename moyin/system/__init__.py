"""General building blocks, independent of the product: processes, log files, call limits."""
