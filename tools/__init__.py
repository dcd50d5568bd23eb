"""Tools that prepare and check face sets, plan runs, and use trained models.

Each file here is one tool.
"""
