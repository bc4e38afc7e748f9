"""Runs one batch of steps somewhere and yields events.

One Protocol, one conformance suite. Executors know no database: they take steps and yield log
chunks and outcomes; who claimed the steps and what becomes of the outcome is not theirs to know.
"""
