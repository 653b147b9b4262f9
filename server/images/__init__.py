"""Untrusted images to RGB pixels: data URLs, fetching, and decoding in processes of their own.

The decoder process imports ``worker``, ``decode``, ``faults``, ``limits`` and ``protocol``, and these nothing else of
the server: it starts fast and stays small. ``reader`` is what the rest of the server uses.
"""
