"""Benchmarks. Nothing imports this; figures are ratios of paired, interleaved runs."""
