"""The process of one point: ``spp run``, which ends when the sweep that started it has ended.

Its standard input is a pipe that nobody writes to. The kernel closes it with the sweep, however
that ends, so that a killed sweep leaves no process behind that the next one would meet.
"""

from __future__ import annotations

import os
import signal
import threading

from spp_cli.reporting.failures import INTERRUPTED


def _end_with_the_sweep() -> None:
    while os.read(0, 1):
        pass
    os._exit(INTERRUPTED)  # a stage that is killed at any moment goes on from there


if __name__ == "__main__":
    # The sweep ends it so, also where it runs in a shell's background, which ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    from spp_cli.__main__ import main

    main()
