"""The same likelihood by other means, each as its users write it; one module a peer.

``likelihood(workload)`` returns a function of the accuracy setting (a tolerance, or a number of steps)
that returns -log p (B,) in nats.
"""
