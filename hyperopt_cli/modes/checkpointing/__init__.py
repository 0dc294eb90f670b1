"""Past states from fewer slots than steps: which are kept (`binomial.py`), where (`shelves.py`), and the run again."""
