"""Data: from raw material to samples that a model may learn from. Each module is one stage and its inner machine."""
