"""One Service of IPv4 and UDP as rules, in the form of kube-proxy's: anchors to be measured beside. Pure.

Sources are masqueraded, as bpfproxy does where the backend is on another node.
"""

from __future__ import annotations

from collections.abc import Sequence


def iptables(vip: str, port: int, pods: Sequence[str], target_port: int) -> str:
    """For iptables-restore."""
    separate = [f"KUBE-SEP-{number}" for number in range(len(pods))]
    chains = ("KUBE-SERVICES", "KUBE-SVC", "KUBE-MARK-MASQ", "KUBE-POSTROUTING", *separate)
    lines = [
        "*nat",
        *(f":{chain} - [0:0]" for chain in chains),
        "-A PREROUTING -j KUBE-SERVICES",
        "-A POSTROUTING -j KUBE-POSTROUTING",
        f"-A KUBE-SERVICES -d {vip}/32 -p udp -m udp --dport {port} -j KUBE-SVC",
        "-A KUBE-SVC -j KUBE-MARK-MASQ",
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
    ]
    for left, chain, pod in zip(range(len(pods), 0, -1), separate, pods, strict=True):
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        lines.append(f"-A KUBE-SVC {chance}-j {chain}")
        lines.append(f"-A {chain} -p udp -m udp -j DNAT --to-destination {pod}:{target_port}")
    return "\n".join([*lines, "COMMIT", ""])


def nftables(vip: str, port: int, pods: Sequence[str], target_port: int) -> str:
    """For `nft -f`."""
    choices = ", ".join(f"{number} : goto endpoint-{number}" for number in range(len(pods)))
    endpoints = "\n".join(
        f"    chain endpoint-{number} {{ meta l4proto udp dnat to {pod}:{target_port}; }}"
        for number, pod in enumerate(pods)
    )
    return f"""table ip kube-proxy {{
{endpoints}
    chain mark-for-masquerade {{ mark set mark or 0x4000; }}
    chain service {{ jump mark-for-masquerade; numgen random mod {len(pods)} vmap {{ {choices} }}; }}
    map service-ips {{
        type ipv4_addr . inet_proto . inet_service : verdict
        elements = {{ {vip} . udp . {port} : goto service }}
    }}
    chain nat-prerouting {{
        type nat hook prerouting priority dstnat
        ip daddr . meta l4proto . th dport vmap @service-ips
    }}
    chain nat-postrouting {{
        type nat hook postrouting priority srcnat
        mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random
    }}
}}
"""
