"""The command `ft`, and `python -m finetune`."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback, until the command itself listens

from finetune.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
