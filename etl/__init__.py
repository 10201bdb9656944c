"""Every contact of an EleAPI account in a warehouse, with proof that none is missing."""

__version__ = "0.1.0"
