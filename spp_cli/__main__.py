"""``python -m spp_cli`` and the ``spp`` script."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        from spp_cli.cli import app  # here, so that Ctrl-C while it loads is quiet too

        app(prog_name="spp")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
