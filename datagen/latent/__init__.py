"""Editing by latents, on any generator: scores of attributes, and what is learned from them to edit along."""
