"""What others have in the netfilter of a lab's node, and what all of it holds."""

from __future__ import annotations

import re
import subprocess
from contextlib import closing
from typing import Any

from pyroute2 import IPSet

from bpfproxy.lab import netns
from bpfproxy.lab.topology import Topology

_NFT = """
add table inet users-own
add chain inet users-own prerouting { type nat hook prerouting priority -110 ; }
add rule inet users-own prerouting ip daddr 192.0.2.99 tcp dport 80 dnat ip to 192.0.2.98
add table ip kube-mine
add set ip kube-mine cluster-ips { type ipv4_addr ; }
add element ip kube-mine cluster-ips { 192.0.2.99 }
add chain ip kube-mine services { type filter hook forward priority 5 ; }
add rule ip kube-mine services ip daddr @cluster-ips drop
"""
_RULES = """
*nat
:KUBE-USERS-OWN - [0:0]
-A PREROUTING -m comment --comment "of a user" -j KUBE-USERS-OWN
-A KUBE-USERS-OWN -d {address} -p tcp --dport 80 -j REDIRECT --to-ports 81
COMMIT
*filter
:KUBE-SVC-USERS-OWN - [0:0]
-A FORWARD -j KUBE-SVC-USERS-OWN
-A KUBE-SVC-USERS-OWN -d {address} -j DROP
-A INPUT -m conntrack --ctstate INVALID -d {address} -j DROP
COMMIT
"""
_SET = "KUBE-MINE"
_FAMILIES = {"iptables": "192.0.2.99", "ip6tables": "2001:db8::99"}


def put(topology: Topology, node: str) -> None:
    """Rules, chains, tables and sets of a user, under names as near to ours as one may think of."""
    _run(topology, node, ["nft", "-f", "-"], _NFT)
    for tool, address in _FAMILIES.items():
        _run(topology, node, [f"{tool}-restore", "--noflush"], _RULES.format(address=address))
    with _sets(topology, node) as sets:
        sets.create(_SET)
        sets.add(_SET, "192.0.2.99")


def snapshot(topology: Topology, node: str) -> set[str]:
    """All chains, rules and sets in the netfilter of a node, a line each; counters, and chains that tables come with,
    left out."""
    found = set()
    for tool in _FAMILIES:
        table = ""
        for line in _run(topology, node, [f"{tool}-save"]).splitlines():
            if line.startswith("*"):
                table = line
            elif line.startswith("-A ") or (line.startswith(":") and " - " in line):
                found.add(f"{tool} {table} {line.split(' [')[0]}")
    table = ""
    for line in _run(topology, node, ["nft", "-s", "list", "ruleset"]).splitlines():
        if line.startswith("table"):
            table = line
        # What iptables has written is in its own listing, with the tables that it makes for itself.
        if not re.match(r"table ip6? (nat|filter|mangle|raw) ", table):
            found.add(f"nft {table} {line}")
    with _sets(topology, node) as sets:
        for message in sets.list():
            members = message.get_attr("IPSET_ATTR_ADT")
            data = members.get_attrs("IPSET_ATTR_DATA") if members else None
            found.add(f"ipset {message.get_attr('IPSET_ATTR_SETNAME')}: {data}")
    return found


def _sets(topology: Topology, node: str) -> Any:
    with netns.inside(topology.netns(node)):
        return closing(IPSet())


def _run(topology: Topology, node: str, command: list[str], text: str = "") -> str:
    with netns.inside(topology.netns(node)):
        return subprocess.run(command, input=text, check=True, text=True, stdout=subprocess.PIPE).stdout
