"""Training: data, losses, the loop, the run's folder."""
