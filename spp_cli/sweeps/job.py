"""The process of one point: ``spp run``, which ends when the sweep that started it wants it to.

Its standard input is a pipe that nobody writes to. The sweep closes it to end the process, and the
kernel does so when the sweep itself is killed: no process is left that the next one would meet.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time

from spp_cli.reporting.failures import INTERRUPTED

_GRACE = 3.0  # seconds to end as after Ctrl-C; then at once, which harms no stage either


def _end_with_the_pipe() -> None:
    while os.read(0, 1):
        pass
    _thread.interrupt_main()
    time.sleep(_GRACE)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    # A shell's background would have it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_the_pipe, daemon=True).start()
    from spp_cli.__main__ import main

    main()
