"""The long-lived loops: evaluate, dispatch, maintain.

Each is a small service with start, stop and a lease. A loop claims, calls features and operations,
and reports; the rules it follows live in ``triggers``, ``queue``, ``planner`` and ``results``.
"""
