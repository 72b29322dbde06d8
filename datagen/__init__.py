"""Before/after pairs from rough edits of portraits."""
