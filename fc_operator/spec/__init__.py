"""Turns an untrusted manifest into (desired, problems); never raises on user input.

Reads ``crds/`` for schema, defaults and CEL rules. It knows no door, no database and no git.
"""
