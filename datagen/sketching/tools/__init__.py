"""Warps, curves, texture and matching, shared by the sketches."""
