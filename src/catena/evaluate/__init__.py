"""Evaluation: models in, reports out. Free of torch: a model is reached through the `Generator` protocol only."""
