"""The runtime: gateway and engine processes. Import rooms by their full path; nothing is re-exported here."""
