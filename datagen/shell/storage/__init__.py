"""Folders at URLs: object storage through fsspec."""
