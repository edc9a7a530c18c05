"""minidalle: DALL-E (Ramesh et al. 2021, arXiv:2102.12092) from scratch on plain PyTorch."""
