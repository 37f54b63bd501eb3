"""A hospital's data on disk -> samples. Never imported by the server."""
