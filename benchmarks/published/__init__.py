"""Latencies that others published of phones, the networks behind them, and a fit to them."""
