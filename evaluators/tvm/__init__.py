"""The compiler: from an ONNX graph to a library with kernels of our own."""
