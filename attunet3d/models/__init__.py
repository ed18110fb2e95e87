"""The Attention U-Net, its checkpoints, and the rewriting that makes it fast."""
