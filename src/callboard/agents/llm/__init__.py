"""Language models: one port, its adapters, and what every call owes (record, cost, budget)."""
