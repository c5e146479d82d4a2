"""The gateway's routes: parse, call, render."""
