"""The process that writes a columnar file: `python -m crawler.export.columnar_file FORM GROUP PATH`.

Batches come to its standard input as a stream of Arrow. What packs them holds the interpreter's lock: in a process of
its own the next rows are read meanwhile.
"""

from __future__ import annotations

import signal
import sys

# Level 3 makes Parquet a tenth smaller, and takes a quarter more of the whole command's CPU.
PARQUET_ZSTD_LEVEL = 1
# Values that repeat have a small one. Trying a larger one for others takes a tenth of the packing, and larger files.
DICTIONARY_BYTES = 64 * 1024


def main() -> None:
    """Write the file. A signal for the whole group is for the process that sends the batches: it ends their stream."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The process that starts this one imports this module, and may do without this extra.
    from arro3.io import read_ipc_stream, write_ipc, write_parquet

    form, group, path = sys.argv[1:]
    batches = read_ipc_stream(sys.stdin.buffer)
    if form == "arrow":
        write_ipc(batches, path, compression="zstd")
    else:
        write_parquet(
            batches,
            path,
            compression=f"zstd({PARQUET_ZSTD_LEVEL})",
            max_row_group_size=int(group),
            dictionary_page_size_limit=DICTIONARY_BYTES,
        )


if __name__ == "__main__":
    main()
