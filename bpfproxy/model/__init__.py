"""The words of the project as types: what the other layers say to each other.

Nothing here does I/O, reads a clock or knows a kernel.
"""
