"""Checkpoints that this project trained; an installed package carries them as minidalle.shipped."""
