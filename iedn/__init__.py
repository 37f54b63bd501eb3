"""The library: network, training, metrics and the protocol. No socket, no hospital.

Kept free of imports so that ``iedn.protocol.messages`` can be read without torch.
"""

__version__ = "0.1.0"
