"""Where and how requests connect: permitted addresses, name lookup, TLS, credentials."""
