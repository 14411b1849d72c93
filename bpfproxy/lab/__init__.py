"""A cluster in network namespaces: an outside client, two nodes and their pods, with real agents and real traffic.

Uses bpfproxy as a person would, by its command line and its public API; nothing imports the lab.
"""
