"""Authentication: API keys, tenants, and the access file."""
