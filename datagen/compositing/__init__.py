"""The edit put back into the photo."""
