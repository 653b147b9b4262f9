"""From a picture to the pixels that an encoder reads, in float, with the spectral norm of the way."""
