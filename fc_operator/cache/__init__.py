"""The binary cache: what a narinfo says, what a NAR is, who signs, what an uploader may bring.

Here live the formats (narinfo, NAR, listings, content addresses, signatures) and the checks that
stand between an upload and a row of ``cache_paths``. HTTP is ``web.cache``'s, transactions are
``operations.cache``'s, bytes are kept by ``clients.objects``. Nothing is deleted here: what goes is
decided by ``retention``.
"""
