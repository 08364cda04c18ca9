"""Integer kernels for NVIDIA GPUs."""
