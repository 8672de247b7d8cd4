"""Compressed bodies as no server should send them: bombs without an end, and deflate without its header."""

from __future__ import annotations

import zlib

import brotli

MIB = 1024 * 1024


def gzip_bomb(mebibytes: int) -> bytes:
    """A gzip stream, without an end, of that many MiB of zeros; it has a thousandth of their size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (mebibytes - 1)


def brotli_bomb(mebibytes: int) -> bytes:
    """A brotli stream, without an end, of that many MiB of zeros."""
    packer = brotli.Compressor(quality=5)
    head = packer.process(bytes(MIB)) + packer.flush()
    packer.process(bytes(MIB))
    packer.flush()
    block = packer.process(bytes(MIB)) + packer.flush()
    return bytes(head + block * (mebibytes - 1))


def zstd_bomb(mebibytes: int) -> bytes:
    """A zstd frame, without an end, of that many MiB of zeros: each block of 4 bytes makes 128 KiB (RFC 8878)."""
    size_and_kind = (128 * 1024 << 3) | (1 << 1)
    return bytes.fromhex("28b52ffd0050") + (size_and_kind.to_bytes(3, "little") + b"\0") * 8 * mebibytes


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(body) + packer.flush()
