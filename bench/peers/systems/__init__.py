"""One module for each peer: how it is served, run and judged."""
