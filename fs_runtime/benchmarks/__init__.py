"""Benchmarks of speed, each against a baseline of the same run, and of the samples that betting schemes need."""
