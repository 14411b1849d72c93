"""A small process that lives in one place of a lab: it serves there and sends requests from there.

Standard library only, since it has to start fast. `bpfproxy.lab.place` is the handle that tests and the demo use.
"""
