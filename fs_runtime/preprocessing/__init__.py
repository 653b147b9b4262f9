"""Preprocessing in floating point, from a picture to the encoder's pixels, with the spectral norm of that map."""
