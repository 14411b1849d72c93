"""The kernel's packet filters, by the tools that come with them."""
