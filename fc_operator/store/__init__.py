"""All PostgreSQL: pool, transactions, listener, migrations, the embedded server.

One module per table family beside its ``sql/*.sql``; every query is a named query there. No rules:
a function here is the typed face of a query.
"""
