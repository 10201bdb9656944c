"""The kill and errno harness: real publications, killed or failed at any one of their system calls.

A traced child publishes through the production sinks; at the n-th call that touches the target or the files next to it,
the process is killed or the call fails. Then an independent reader must see the old snapshot or the new one, and the
next run must recover without intervention (fault groups P and S).
"""
