"""Thin, typed REST clients of the Google services in use, one module per service.

A `Google` connection (see `transport.py`) flows into every function, plain JSON objects and small
frozen values flow out. No official SDK is imported.
"""
