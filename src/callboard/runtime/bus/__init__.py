"""The bus: one port (``base``), two adapters (``jetstream``, ``memory``), and what is built on the port alone."""
