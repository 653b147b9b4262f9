"""Evaluation of defences: accuracy and attack success, certified similarity and cost, with their uncertainty."""
