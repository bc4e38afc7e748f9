"""Reads for people: one module per noun beside its ``sql/pages/*.sql``; nothing here writes.

Each row is a TypedDict that says what the query selects; it is also what the API documents. Every
query takes a ``Reader`` and shows only what that reader may see. Lists are keyset pages and give
one row more than was asked for, so that the caller knows whether there are more.
"""
