"""The userspace proxier: connections end in a process of the node, which opens others to the backends.

nftables redirects what is for a frontend to a listener of that process (`redirect`), which relays (`server`). It is the
slowest of the proxiers and the only one that can try another backend when one does not take a connection.
"""
