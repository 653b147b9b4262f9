"""Servers that tests start end with the tests, however those end."""

import signal

# The kernel sends SIGTERM to the command that follows when the thread that started it ends. A preexec_fn would do the
# same with a fork, which is not safe beside the threads of torch.
WITH_PARENT = ("setpriv", "--pdeathsig", "TERM", "--")


def pytest_configure() -> None:
    """Lets SIGTERM end the tests as Ctrl-C does: fixtures are torn down, and servers stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
