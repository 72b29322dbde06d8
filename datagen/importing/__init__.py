"""Pairs of pictures that others made: matched, registered, judged and stored as our own."""
