"""General building blocks that are independent of the product: processes, log files, fair slots."""
