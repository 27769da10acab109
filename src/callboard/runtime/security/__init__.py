"""Who may do what at the broker: roles, users, certificates, accounts, and the server configuration made of them."""
