"""A faithful simulator of the contact API over real HTTP, with a truth log that tests compare against.

It imports nothing of the rest of the package, so that it is an independent oracle: a misunderstanding of the API in the
exporter is not repeated in the server that tests it.
"""
