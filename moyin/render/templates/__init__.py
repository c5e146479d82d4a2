"""Templates from files, by name."""
