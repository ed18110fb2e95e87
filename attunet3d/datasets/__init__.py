"""Cases and manifests: which scans and labels there are, checked and dealt into folds."""
