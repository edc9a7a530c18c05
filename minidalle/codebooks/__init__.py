"""What can stand in the dVAE's place: other ways from an image to a grid of tokens and back."""
