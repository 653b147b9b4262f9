"""Rate limits of tenants: requests, images, noise samples and votes in a minute."""
