"""Files for other launchers: a W&B Launch queue and a SkyPilot task, written and never run here.

A configuration flows in, texts of files flow out. Each says in its head what that launcher cannot
do, and each leaves recovery to checkpoints: a started job continues whatever is in the store.
"""
