"""Contains the HTTP routes of the models app, by subject."""
