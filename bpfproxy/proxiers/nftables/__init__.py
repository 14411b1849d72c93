"""The nftables proxier: verdict maps and chains in one table per family, laid out and named as kube-proxy's."""
