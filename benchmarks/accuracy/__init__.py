"""How right the label maps are."""
