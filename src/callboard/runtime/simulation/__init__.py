"""Deterministic simulation: several processes and a broker on one event loop with virtual time, repeatable by seed."""
