"""The ipvs proxier: the kernel's virtual servers, VIPs on a dummy device, and ipsets with a few iptables rules around.

`sets` and `chains` are the fixed part, `render` makes rows of a plan, `proxier` brings them into the kernel by
`servers` (IPVS), `addresses` (the dummy device), and netfilter's ipsets, rules and sysctls.
"""
