"""From portraits to pairs: plan, workers, quality gate."""
