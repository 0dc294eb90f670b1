"""The processes that share the work of one run: how they find each other, and what they say to each other.

    columns     each carries a block of the tangents; nothing is said inside of the inner run
    batch       each takes a part of every batch; gradients and products are summed over all
    replicas    each takes its share of the seeds

What is decided by a clock or by the memory that is free is decided by the first of them, the lead. It alone writes.
"""
