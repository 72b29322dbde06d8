"""Rough edits within the face: mattes of lips and brows, glasses, parts from a reference."""
