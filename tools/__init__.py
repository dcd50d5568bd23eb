"""Tools that prepare and check face sets, and that plan a run.

Each file here is one tool.
"""
