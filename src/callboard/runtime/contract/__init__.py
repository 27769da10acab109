"""Tests that every adapter of a port must pass, ours and others'. They need pytest and pytest-asyncio."""
