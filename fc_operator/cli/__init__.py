"""The ``fc`` command: one file per subcommand.

Here live arguments, help texts, tables and exit codes. Verbs speak HTTP to a running server; only
``up``, ``migrate`` and the first ``key create`` reach a database, and they do so through ``app``.
No decisions about builds or manifests: those are made by the rooms below and shown here.
"""
