"""The accounts API: its shapes, and the domain in them."""
