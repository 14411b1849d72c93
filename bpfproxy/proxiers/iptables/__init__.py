"""Rules as kube-proxy writes them in its iptables mode."""
