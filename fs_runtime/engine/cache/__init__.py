"""Smoothed images that are kept: in this process, and in a Redis that replicas share."""
