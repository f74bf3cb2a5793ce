"""Who may do what: users, passwords, tokens, OAuth, teams, and the rights that follow."""
