"""The doors for desired state.

``repos`` syncs config repositories and directories. What is declared goes to ``operations`` and on
to the reconciler, which can't know which door it came through. No evaluation, no builds.
"""
