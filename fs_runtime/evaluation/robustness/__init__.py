"""Accuracy and attack success of each defence."""
