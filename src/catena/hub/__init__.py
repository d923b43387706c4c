"""Stored things: the index, content-addressed files, dataset tables, lineage, integrity."""
