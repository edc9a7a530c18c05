"""What can stand in DALLE's place: other ways to predict image tokens from a caption."""
