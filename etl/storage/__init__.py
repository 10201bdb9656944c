"""Files, locks and the engine: utilities that know nothing of contacts. May import `config`, `model` and `errors`.

Read `files` first (the file operations for durable publishing), then `staging` (parts on disk), `lock` and `duck`.
"""
