"""The measuring side: accuracy, latency and the statistics over both, importable without torch."""
