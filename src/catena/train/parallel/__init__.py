"""Many processes as one training: who holds which weights, who sees which rows, and how gradients meet."""
