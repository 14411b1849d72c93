"""The same cases on every proxier, judged by the same oracle: `bpfproxy parity`."""
