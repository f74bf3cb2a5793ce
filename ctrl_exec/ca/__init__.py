"""The certificate authority: signing, the identity of the dispatcher, the queue of pairing requests."""
