"""The kill and errno harness: real publications, ended or failed at any one of their system calls.

A traced child publishes through the production sinks; the n-th call that touches the target or what stands beside it
ends the process or fails. Then an independent reader must see the old snapshot or the new one, and the next run must
heal what was left without a hand (docs/faults.md groups P and S).
"""
