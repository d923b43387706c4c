"""Advice before the first training: which model, in which format, on how many GPUs, how fast and at what cost."""
