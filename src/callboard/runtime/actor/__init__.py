"""Actors: durable mailboxes, fenced turns, journaled steps, and who owns which partition."""
