"""Who may run what, when: claims, leases, fairness, priorities, retries, unblocking.

Also why something waits. Running a step is ``executors``'; what it left behind is ``results``'.
"""
