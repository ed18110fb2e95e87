"""The networks that were published as Attention U-Net, each in its own file, as published."""
