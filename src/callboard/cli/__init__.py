"""Room 3: words in, words out."""
