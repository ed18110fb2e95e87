"""The commands of `attunet3d`, one a file: each holds the order of events and nothing else."""
