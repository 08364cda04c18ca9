"""ONNX graphs as compilers read them: constants, shapes, quantizers, activations."""
