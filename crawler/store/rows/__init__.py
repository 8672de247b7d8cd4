"""A batch's rows: how they are written in COPY's format, and which of them an error is about."""
