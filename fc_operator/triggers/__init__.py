"""What makes an evaluation due: polls, webhook events matched to jobsets, requests.

Here live the matching rules and the due times. Running an evaluation is ``evaluator`` and
``scheduler``; the HTTP side of a webhook is ``web``.
"""
