"""``python -m server.cli`` is ``fs-serve``."""

from server.cli.commands import main

if __name__ == "__main__":
    main()
