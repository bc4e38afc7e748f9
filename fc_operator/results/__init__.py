"""What a step left behind: build status, products, metrics, logs, channels.

Reads the contracts between Nix code and a CI (``nix-support``) and archives logs. It does not run
anything and does not decide retries (``queue``).
"""
