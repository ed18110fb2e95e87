"""How many scans an hour machines together segment, and what limits them."""
