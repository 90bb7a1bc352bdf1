"""The report people look at: one self-contained HTML file a run, made from the run's own files.

It reads records and arrays only, so that a page can be made again long after the run.
"""
