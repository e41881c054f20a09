"""Away from this machine: machines, prices, job specifications, targets and the supervisor.

A configuration flows in; a priced plan, jobs and their log flow out. Left out: Google's wire
formats (`cloud/api/`) and what a job trains (`training/`).
"""
