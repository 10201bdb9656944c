"""Where accounts are read: in this process, or on the workers of a Dask cluster. May import all but `cli`, `commands`.

Read `task` first (what is needed to read one account, and the two interfaces), then `in_process`; `attempts` (the
folders of workers that may die at any moment, and the result of one that finished), `takeover` (an account read in such
a folder), and `cluster`, the only module that imports `distributed`.
"""
