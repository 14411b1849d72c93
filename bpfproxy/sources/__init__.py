"""Where the objects come from: manifest files, and the node's own addresses from the kernel.

A source decodes and validates what it reads and hands over `bpfproxy.model` objects; nothing past it knows YAML, JSON,
inotify or netlink. The Kubernetes API is one more source behind the same seam (`base.Source`, `kube` for decoding).
"""
