"""Filters of documents: each is a config with a rule, `reason(sample) -> str | None`, and does no I/O."""
