"""Rate limits of tenants: requests, images and noise samples in a minute."""
