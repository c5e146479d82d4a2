"""Contains the Ray Serve apps, each in a folder with a builder and the deployment that it binds."""
