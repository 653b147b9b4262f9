"""Turns untrusted images into RGB pixels: data URLs, fetching, and decoding in separate processes.

The rest of the server uses ``reader``. To start fast and stay small, the decoder process imports ``worker``,
``decode``, ``faults``, ``limits`` and ``protocol`` only, and these import nothing else of the server.
"""
