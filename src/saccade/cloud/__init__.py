"""Google Cloud: thin clients, the resources a project needs, and a local stand-in for all of it.

Settings and a project's name flow in, resources and findings flow out. What runs on those
resources (machines, prices, jobs, packaging) is in `saccade.launch`.
"""
