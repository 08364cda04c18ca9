"""What is known of a space before and beside its trials: sizes, latencies, sensitivities."""
