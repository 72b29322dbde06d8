"""Product features: one file each."""
