"""Tools that come with Callboard: files, search, git, Python in a sandbox, and pages of the web."""
