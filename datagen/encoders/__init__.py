"""Encoders of a generator: from an aligned photo to latents, and to noise maps, in one pass or in several."""
