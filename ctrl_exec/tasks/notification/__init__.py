"""Telling others: notifiers, the queue of news, and how each kind is handed over."""
