"""Routes of the accounts app: parse, call, render."""
