"""Routes of the models app: parse, call, render."""
