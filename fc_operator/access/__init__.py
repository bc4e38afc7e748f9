"""Keys, roles, and the one ``authorize``.

Used by web and CLI alike. HTTP headers and status codes are ``web``'s.
"""
