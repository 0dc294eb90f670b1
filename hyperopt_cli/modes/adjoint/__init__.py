"""Past states from fewer slots than steps: which are kept (`binomial.py`), where (`stores.py`), and the run again."""
