"""Certified accuracy of answers by vote, beside the cosine certificate of the same copies, and attacks on it."""
