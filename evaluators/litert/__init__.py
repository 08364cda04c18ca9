"""The converter from float and QDQ ONNX files to LiteRT's `.tflite` files."""
