"""How the command lines of this project write to a terminal or a pipe."""

import signal
import sys
from io import TextIOWrapper


def prepare_output() -> None:
    """Print as other programs do: end in silence when the reader, such as `head`, has seen enough, and escape bytes of
    paths that the encoding lacks."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
