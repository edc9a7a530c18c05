"""The scale wing: everything that a laptop never needs, and the only home of torch.distributed.

It wraps models from outside. Nobody on the street imports it but the command line.
"""
