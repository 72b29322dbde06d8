"""Pairs on disk: record, shards, export and the page that shows them."""
