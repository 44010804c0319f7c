"""What came of a training: accuracy, size, FLOPs and latency of several models, side by side."""
