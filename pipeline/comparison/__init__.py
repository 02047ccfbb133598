"""Runs side by side: `facts` of two reports, a `leaderboard` of many, in `words` and on `pages`.

Everything is a pure function of reports: the same ones always give the same figures. Facts are
frozen and become JSON; the terminal (`pipeline.tables`), Markdown and HTML print the same words.
"""
