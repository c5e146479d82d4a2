"""In which order renders run, and where."""
