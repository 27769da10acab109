"""Sandboxes: where code that a model wrote, or a tool that is not trusted, runs."""
