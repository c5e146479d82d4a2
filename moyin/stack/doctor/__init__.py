"""Finds problems of this machine that would prevent or slow the stack, and mends some of them."""
