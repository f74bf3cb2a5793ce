"""Webhooks: who may start what from outside, and what was delivered."""
