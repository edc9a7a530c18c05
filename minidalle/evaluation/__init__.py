"""Measuring what a run draws."""
