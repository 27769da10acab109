"""Who is alive, what they can do, and how busy they are."""
