"""Measurements of speed, each against a baseline of the same run, and of what bets cost in samples."""
