"""Fit the phone: from a budget ("5 ms and 3 MB on this phone") to a trained student that keeps it.

`fitting.run` reads top to bottom. What a network costs is counted in its untrained files, so that
most of the search trains nothing.
"""
