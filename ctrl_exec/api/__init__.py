"""The HTTP front end: routes, decoding, encoding, status codes."""
