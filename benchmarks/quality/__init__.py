"""How well the router tells hard requests from easy ones, on public tables of answers."""
