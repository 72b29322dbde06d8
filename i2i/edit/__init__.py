"""Editing whole photos with a trained model."""
