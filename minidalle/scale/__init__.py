"""The scale wing: everything that a laptop never needs, and nothing else imports torch.distributed.

It wraps models from outside. Nobody on the street imports it but the command line.
"""
