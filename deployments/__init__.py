"""Contains the Ray Serve apps; the folder of each app has its builder and its deployment."""
