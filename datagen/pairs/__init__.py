"""Pairs on disk: record, codec, shards, export and the page that shows them."""
