"""From pages as the server sent them to columns: nothing lost, nothing guessed, and as fast as Arrow reads JSON."""

from etl.normalize.normalizer import Normalizer

__all__ = ["Normalizer"]
