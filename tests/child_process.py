"""Servers that tests start end with the tests, however those end."""

import os
import signal

# The kernel sends SIGTERM to the command that follows when the thread that started it ends. A preexec_fn would do the
# same with a fork, which is not safe beside the threads of torch.
WITH_PARENT = ("setpriv", "--pdeathsig", "TERM", "--")


def environment() -> dict[str, str]:
    """This process's variables but those that tests alone read, which the gateway would refuse: they begin with FS_."""
    of_tests = ("FS_REQUIRE_", "FS_TEST_", "FS_VLLM_PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(of_tests)}


def pytest_configure() -> None:
    """Lets SIGTERM end the tests as Ctrl-C does: fixtures are torn down, and servers stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
