"""Training of purifiers, mappers and robust encoders."""
