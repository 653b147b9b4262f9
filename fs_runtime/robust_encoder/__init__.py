"""Adversarially trained vision encoders: the defence of the literature that smoothing competes, and combines, with."""
