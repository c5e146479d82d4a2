"""Contains general building blocks, such as child processes, log files and fair slots."""
