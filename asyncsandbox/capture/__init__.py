"""Output of background jobs on servers that have only the published contract, which may keep none.

Such a server runs a small program instead (`runner`), which runs the job as its child and keeps what it writes,
and how it ends, in files below ``/tmp/.asyncsandbox/KEY``, read back with the files API. It also passes the
output on: where the server lists output, short ones are there and nothing has to be read. The key is in the
job's name on the wire, so any client that sees the job finds its files.
"""

from asyncsandbox.capture.reading import (
    Captured,
    CapturedStream,
    directory,
    read_captured,
    read_output,
    remove_captured,
)
from asyncsandbox.capture.wrapping import OUTPUT_LIMIT, wrap

__all__ = [
    "OUTPUT_LIMIT",
    "Captured",
    "CapturedStream",
    "directory",
    "read_captured",
    "read_output",
    "remove_captured",
    "wrap",
]
