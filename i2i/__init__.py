"""Single-pass editing networks: training and production."""
