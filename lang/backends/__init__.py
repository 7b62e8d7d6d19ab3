"""One backend a file; each may use at most one client library."""
