"""How many lines files have, without a look at what is in them."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.source.input.files import SourceFile
from coordinator.source.input.formats import compression_of
from coordinator.source.input.pieces import DAMAGE_ERRORS, pieces

# The lines of compressed files are estimated from their first bytes.
_SAMPLE_BYTES = 16 * 1024 * 1024


def estimate_lines(files: Sequence[SourceFile], *, may_be: str = "") -> int | None:
    """About how many lines the files have, None for damaged ones: exact for plain text, else from the first 16 MB.

    Raises SourceError when a file is not text (but for `may_be`, as in `require_lines`).
    """
    lines = known_bytes = all_bytes = sampled_bytes = 0
    for file in files:
        raw = file.open()
        all_bytes += raw.size
        last = b"\n"
        try:
            compressed = compression_of(raw.head()) is not None
            if compressed and sampled_bytes > _SAMPLE_BYTES:
                continue
            for piece in pieces(raw, may_be=may_be):
                lines += _line_ends(piece)
                last = piece[-1:] or last
                if compressed and sampled_bytes + raw.bytes_read > _SAMPLE_BYTES:
                    known_bytes += raw.bytes_read
                    break
            else:
                known_bytes += raw.size
                lines += last not in b"\r\n"
            sampled_bytes += raw.bytes_read if compressed else 0
        except DAMAGE_ERRORS:
            return None
        finally:
            raw.close()
    return lines * all_bytes // known_bytes if known_bytes else lines


def _line_ends(text: bytes) -> int:
    """How many lines end in this text."""
    count = text.count(b"\n")
    return count + text.count(b"\r") - text.count(b"\r\n") if b"\r" in text else count
