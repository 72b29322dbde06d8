"""Runnable recipes: the YAML files here are installed as data and found by name; the scripts in subfolders are not."""
