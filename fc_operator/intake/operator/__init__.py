"""Objects of our kinds in a cluster: in as declarations, out as statuses.

kopf watches, in a thread and loop of its own, and decides nothing. What it tells goes to the
``desk``, which brings it into force in batches; the ``writer`` writes statuses and finalizers,
and only where they differ. ``objects`` and ``statuses`` are pure.
"""
