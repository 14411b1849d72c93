"""Tests on other kernels: boots one of Debian's under QEMU's emulation, over this machine's own root file system.

    python -m bpfproxy.lab.kernel 6.1 -- tests/kernels -q

`debian` fetches kernels, `machine` boots one and runs a command inside, `matrix` does the same for every kernel and
writes what each of them gives.
"""
