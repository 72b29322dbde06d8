"""Published ways to edit a portrait by its latent, in our harness: each module has a `reconstruct` with our
signature."""
