"""Read a folder: digest each file, find near-duplicates, merge into one report."""
