"""Loaders of checkpoints that others trained, one file a family."""
