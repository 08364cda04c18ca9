"""Making a candidate's model: pruning, export, quantization, correction, fine-tuning.

Import from the modules: `compressor` is the way in, the others are its steps.
"""
