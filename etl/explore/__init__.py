"""The pages of a target, live in a browser on this machine (`etl explore`).

May import everything but `cli`. Read `server` first (who may ask, and what every answer forbids), then `contacts` (the
queries of the contact browser), `views` (its pages, and those of diff and SQL) and `csv` (a result as a download).
"""
