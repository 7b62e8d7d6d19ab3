"""The radix tree of KV pages, its leases and its eviction."""
