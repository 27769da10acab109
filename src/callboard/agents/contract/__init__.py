"""Tests that every model, sandbox and agent must pass, ours and others'. They need pytest and pytest-asyncio."""
