"""Contains the Serve app ``workers``, which runs the workflows of jobs."""
