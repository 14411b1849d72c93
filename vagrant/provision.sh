#!/bin/sh
# Sets a node up, as root in the machine: the README's set-up in the working tree, and what a node of a cluster has.
set -eu

tree=/bpfproxy
wheels=/var/cache/bpfproxy/wheels # in boxes of `make-box --complete`

# IPVS with every scheduler; the others are helpers of single protocols.
ipvs=$(find "/lib/modules/$(uname -r)" -name 'ip_vs*.ko*' -printf '%f\n' |
    sed 's/\.ko.*//' | grep -vx -e ip_vs_ftp -e 'ip_vs_pe_.*' | sort)
[ -n "$ipvs" ] || {
    echo "the kernel of this box, $(uname -r), has no IPVS: needs Debian's linux-image-amd64, not -cloud" >&2
    exit 1
}
echo "$ipvs" >/etc/modules-load.d/bpfproxy.conf
# shellcheck disable=SC2086 # a list of words
modprobe --all $ipvs

printf 'net.%s = 1\n' ipv4.ip_forward ipv6.conf.all.forwarding >/etc/sysctl.d/90-bpfproxy.conf
sysctl --quiet --load /etc/sysctl.d/90-bpfproxy.conf

# Most modules of the tools are never imported here; compiling them would take longest where the processor is emulated.
export PIP_COMPILE=0

# With wheels in the box no network is needed, until dependencies change.
if [ -d $wheels ]; then
    PIP_NO_INDEX=1 PIP_FIND_LINKS=$wheels $tree/dev build || $tree/dev build
else
    $tree/dev build
fi
ln -sf $tree/.venv/bin/bpfproxy /usr/local/bin/bpfproxy

# Where the processor is emulated, the lab's deadlines are too short. For every login, and behind sudo.
if [ "$(systemd-detect-virt)" = qemu ]; then
    echo BPFPROXY_LAB_PATIENCE=10 >/etc/environment
    echo 'Defaults env_file=/etc/environment' >/etc/sudoers.d/bpfproxy
fi

# The backend of cluster.yaml: it says the node's name.
install -D -m 644 /etc/hostname /srv/web/index.html
cat >/etc/systemd/system/web.service <<'END'
[Service]
ExecStart=/usr/bin/python3 -m http.server --bind :: --directory /srv/web 8080
DynamicUser=yes

[Install]
WantedBy=multi-user.target
END
systemctl --quiet enable --now web
