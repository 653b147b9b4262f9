"""The commands that need no gateway. Each module loads its libraries inside the command, so that help is quick."""
