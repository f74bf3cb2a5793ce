"""The pairing listener (port 7444) and its signer."""
