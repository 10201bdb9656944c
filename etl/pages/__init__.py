"""Pages for people: one HTML document without scripts, drawn from plain numbers. No engine, no server, no file access.

May import only `errors` and `display`. Read `figures` first (what a page shows, as values), then `sections`
(one function a section), `plots` (numbers to SVG, the only module that imports the plotting library), `markup` (the
pieces that sections share) and `document` (the page around them: security policy, style). `process` renders a report
in a process of its own, and is all that a command without the libraries of the extra `report` may import, with
`figures`.
"""
