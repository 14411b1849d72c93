"""Implementations of the proxy behind one seam (`base.Proxier`), and their registry."""
