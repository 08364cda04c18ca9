"""Kernels as TVMScript text: pure functions of a few settings."""
