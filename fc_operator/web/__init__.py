"""Sanic: API v1, pages, forge hooks, metrics.

It translates between HTTP and the rooms below: parse, authorize, call one operation or one read,
render. It never decides what a state change means (``operations``) and holds no SQL (``store``).
"""
