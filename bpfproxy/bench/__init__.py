"""Measurements of bpfproxy: through its public API and its command line only."""
