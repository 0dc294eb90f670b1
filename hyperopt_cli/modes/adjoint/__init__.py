"""Past states from fewer slots than steps: which are kept (`binomial.py`), where (`places.py`), and the run again."""
