"""Scans and their grids: reading, writing, resampling and preprocessing."""
