"""int8: where values are quantized, by what ranges, and what that does."""
