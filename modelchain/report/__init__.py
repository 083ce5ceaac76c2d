"""The report of a chain: what its artifacts say, as one self-contained HTML page and a few PNGs.

`reading` and `metrics` read the store, `accounting` compares costs, `plots` draws, `page` writes the page.
May import: modelchain, matplotlib, jinja2. Artifacts are read from the store, so a report can be made on a
machine where nothing was trained.
"""
