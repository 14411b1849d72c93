"""Netfilter for the proxiers that write rules: iptables in both variants and families, nftables, conntrack,
sysctls.

`rules` says when two rules are the same, `saved` reads what `iptables-save` prints, `command` runs the tools, `rows`
and `writer` keep chains and rules as rows of a proxier, `conntrack` ends flows of endpoints that went, `sysctl` sets
what rules need and puts it back, `nft` runs nftables' tool.
"""
