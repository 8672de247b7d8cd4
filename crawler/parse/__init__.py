"""Bytes in, records out; orjson lives here."""
