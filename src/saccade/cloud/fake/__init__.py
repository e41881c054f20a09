"""A local Google Cloud: the REST APIs that saccade uses, with local processes as containers.

HTTP requests flow in on 127.0.0.1 and flow out answered as Google answers them, so the official
clients work against it unchanged. It is for trying everything without an account and for tests;
it checks no credentials and must never be reachable from another machine.
"""
