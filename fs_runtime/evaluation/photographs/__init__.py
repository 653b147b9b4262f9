"""What smoothing leaves of labelled photographs to pretrained encoders, and what attacks do to both."""
