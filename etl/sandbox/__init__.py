"""A faithful simulator of the contact API over real HTTP, with a truth log that tests compare against.

It imports nothing of the rest of the package, so that it is an independent oracle: an error in the exporter's
reading of the API cannot hide in the server it is tested with.
"""
