"""Networks of the single-pass editor."""
