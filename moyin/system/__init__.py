"""Operating-system building blocks: child processes, log files, back-off, bounded slots, memory.

It holds no policy of the product.
"""
