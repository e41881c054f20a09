"""Tiny recursive models: one small network that is applied many times to its own answer."""
