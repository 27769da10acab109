"""What runs in a peer's own virtual environment: its tasks and its sender. Standard library and the peer alone."""
