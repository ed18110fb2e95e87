"""What a GPU must show."""
