"""Devices behind TVM's RPC: reaching them, knowing how they are, and measuring on them."""
