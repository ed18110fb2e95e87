"""Made-up patients and the made-up scanner that images them."""
