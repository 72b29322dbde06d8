"""Rough edits of hair: strands, fringes, hairlines, outlines."""
