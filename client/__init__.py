"""The process at a site."""
