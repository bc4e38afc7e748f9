"""Everything outside but PostgreSQL: nix, git, object storage, secrets, HTTP.

Takes and returns our types and raises our errors; the outside library never shows through.
"""
