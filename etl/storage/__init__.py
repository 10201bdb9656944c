"""Files, locks and the engine: tools that know nothing of contacts. May import `config`, `model` and `errors`.

Read `disk` first (the operations that durable publishing is made of), then `staging` (parts on disk, and the lock).
"""
