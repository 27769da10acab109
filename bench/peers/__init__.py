"""Callboard beside the systems that people use now, on this machine, each with its durability in the same row."""
