"""Who may use the gateway: keys, tenants, and the file that names them."""
