"""Routes, and the schemas of their requests and responses."""
