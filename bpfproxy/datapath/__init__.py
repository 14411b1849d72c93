"""What lies between the control plane and the kernel: loaders, maps, links, and what the kernel offers."""
