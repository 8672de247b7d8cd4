"""Where requests may connect: addresses, name lookup, TLS, credentials."""
