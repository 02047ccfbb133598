"""For tests that stop a process: it must heed signals as one started at a terminal does."""

import signal


def heed_interrupts() -> None:
    """Undo that a job started in the background inherits SIGINT as ignored; for `preexec_fn`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
