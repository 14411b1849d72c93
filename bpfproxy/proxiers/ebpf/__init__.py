"""The eBPF proxier: service tables in BPF maps, looked up by programs at the socket level."""
