"""From cases and settings to a trained model in a run folder."""
