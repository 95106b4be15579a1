"""Accounts: the ledger of a budget, bills, prices."""
