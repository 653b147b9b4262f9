"""``fs-serve evaluate``: the commands that measure accuracy, certificates, and what attacks do to both."""
