"""The commands that need no gateway. Each command imports its libraries when it runs, so that help is quick."""
