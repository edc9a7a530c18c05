"""Training's parts: optimiser, averaged weights, checkpoints, log."""
