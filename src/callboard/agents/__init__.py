"""Room 2: what an agent is."""
